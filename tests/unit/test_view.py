# SPDX-License-Identifier: Apache-2.0
"""Views: the same content as HTML and as text, and nothing that is shown becomes markup."""

from __future__ import annotations

from html.parser import HTMLParser

from bpfkit.core.errors import VerifierError
from bpfkit.core.types.layout import (
    Field,
    IntLayout,
    Layout,
    StructLayout,
    bytes_layout,
    int_layout,
)
from bpfkit.net.links.device import Device
from bpfkit.notebook.topology import topology
from bpfkit.notebook.values import columns_of, texts
from bpfkit.show.view import Table, View


class Tags(HTMLParser):
    """Names of the tags of a document, and whether they close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.open: list[str] = []
        self.data: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.data.append(data)


def test_html_and_text_have_the_same_content():
    table = Table(["key", "value"], [["a", "1"], ["b", "22"]], right=[False, True], more="… 7 more")
    view = View("Map m", [("type", "hash"), ("id", "")], [table], note="A sentence.")
    tags = Tags(view.html())
    assert not tags.open
    assert tags.names.count("tr") == 3
    for word in ("Map m", "hash", "key", "22", "… 7 more", "A sentence."):
        assert word in view.text()
        assert word in tags.data
    assert "id" not in view.text()  # a fact without a value is left out


def test_text_from_outside_is_no_markup():
    nasty = "<script>alert(1)</script>&\"'"
    view = View(nasty, [(nasty, nasty)], [Table([nasty], [[nasty]], title=nasty, more=nasty)])
    tags = Tags(view.html())
    assert "script" not in tags.names
    assert nasty in tags.data


def test_fields_are_shown_as_what_they_are():
    """By what C says of them, else by their types, else by their names."""
    address = IntLayout("__be32", 4, signed=False, boolean=False, swapped=True)
    byte = int_layout(1)
    members: list[tuple[str, Layout, str]] = [
        ("saddr", address, ""),
        ("label", address, "number"),
        ("mac", bytes_layout(6), ""),
        ("src", bytes_layout(16), ""),
        ("family", byte, ""),
        ("proto", byte, ""),
        ("count", int_layout(4), ""),
    ]
    fields, at = [], 0
    for name, member, form in members:
        fields.append(Field(name, 8 * at, 0, member, form))
        at += member.size
    layout = StructLayout("key", at, fields)
    v6 = bytes.fromhex("20010db8000000000000000000000001")
    row = (0x0A4D0001, 7, bytes(range(6)), v6, 6, 17, 1234567)
    columns = columns_of(layout, "key")
    assert texts(columns, row) == [
        "10.77.0.1", "7", "00:01:02:03:04:05", "2001:db8::1", "6", "udp", "1 234 567",
    ]  # fmt: skip
    v4 = bytes([192, 0, 2, 1]) + bytes(12)
    assert texts(columns, (*row[:3], v4, 4, *row[5:]))[3] == "192.0.2.1"


def test_a_topology_is_well_formed_and_joins_both_ends():
    left, right = Device("eth0", "veth"), Device("eth0", "veth")
    left.peer, right.peer = ("b", "eth0"), ("a", "eth0")
    left.addresses = ["10.0.0.1/24"]
    left.notes = ["<xdp>"]
    drawn = topology({"a": {"eth0": left}, "b": {"eth0": right}}, {"a": ["default"], "b": []})
    tags = Tags(drawn)
    assert not tags.open
    assert tags.names.count("rect") == 2
    assert tags.names.count("path") == 1
    assert any("10.0.0.1/24" in text for text in tags.data)
    assert any("<xdp>" in text for text in tags.data)


def test_an_error_shows_its_lines_and_folds_its_log():
    error = VerifierError("the verifier rejects 'f'", why="a < b", hint="do this", log="x\ny")
    tags = Tags(error._repr_html_())
    assert not tags.open
    assert "details" in tags.names
    assert any("a < b" in text for text in tags.data)
    assert any("2 lines" in text for text in tags.data)


def test_a_traceback_is_the_callers_line_and_the_message():
    namespace: dict[str, object] = {"__name__": "__main__"}
    code = compile(
        "from bpfkit.core.errors import InputError\nraise InputError('w', why='y')", "c", "exec"
    )
    try:
        exec(code, namespace)
    except Exception as error:
        lines = error._render_traceback_()
        assert lines[0].startswith("test_a_traceback")
        assert lines[-2].startswith("line 2")
        assert lines[-1] == "InputError: w: y"
