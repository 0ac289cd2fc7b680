# SPDX-License-Identifier: Apache-2.0
"""The loading path: cache, constants, overrides, and what closing leaves."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import bpfkit
from bpfkit.core.compile import compiler
from bpfkit.core.compile.cache import Cache
from bpfkit.core.errors import InputError, VerifierError
from bpfkit.core.kernel import syscall

ROOT = Path(__file__).resolve().parents[2]

COUNT = """
#include <bpfkit/bpfkit.h>
#include <uapi/linux/bpf.h>
LOAD_CONST(0, verdict, 7);
struct key { u32 a; u16 b; u16 c; };
BPF_HASH(seen, struct key, u64, 64);
SEC("socket")
int judge(struct __sk_buff *skb)
{
	struct key key = { .a = skb->len };
	u64 one = 1;

	seen.update(&key, &one);
	if (verdict() == 9)
		return 9;
	return verdict();
}
SEC("xdp")
int pass(struct xdp_md *ctx)
{
	return XDP_PASS;
}
"""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BPFKIT_CACHE", str(tmp_path / "cache"))
    return Cache()


def bpftool(*argv):
    out = subprocess.run(["bpftool", "-j", *argv], stdout=subprocess.PIPE, check=True).stdout
    return json.loads(out)


def test_second_load_starts_no_compiler(cache, monkeypatch):
    bpfkit.load(COUNT).close()

    def compile_source(*args, **kwargs):
        raise AssertionError("compiled a second time")

    monkeypatch.setattr(compiler, "compile_source", compile_source)
    with bpfkit.load(COUNT) as obj:
        assert obj.programs["judge"].run(bytes(60)).retval == 7
    with pytest.raises(AssertionError):
        bpfkit.load(COUNT, cache=False)


def test_constant_is_put_into_the_instructions_without_a_compile(cache, monkeypatch):
    bpfkit.load(COUNT).close()
    monkeypatch.setattr(compiler, "compile_source", None)
    sizes = {}
    for value in (1, 9, 0xFFFFFFFF):
        with bpfkit.load(COUNT, consts={"verdict": value}, programs=["judge"]) as obj:
            judge = obj.programs["judge"]
            assert judge.run(bytes(60)).retval == value
            sizes[value] = judge.info["xlated_prog_len"]
    # The verifier saw a constant: one of the two branches is gone in each.
    assert sizes[1] == sizes[0xFFFFFFFF]


@pytest.mark.skipif(not shutil.which("bpftool"), reason="bpftool is not installed")
def test_overrides_reach_the_kernel(cache):
    with bpfkit.load(COUNT, max_entries={"seen": 5}, map_types={"seen": "lru_hash"}) as obj:
        shown = bpftool("map", "show", "id", str(obj["seen"].id))
        assert shown["type"] == "lru_hash"
        assert shown["max_entries"] == 5
        assert shown["bytes_key"] == 8


@pytest.mark.skipif(not shutil.which("bpftool"), reason="bpftool is not installed")
def test_bpftool_sees_names_types_and_btf(cache):
    with bpfkit.load(COUNT) as obj:
        judge = bpftool("prog", "show", "id", str(obj.programs["judge"].id))
        assert (judge["type"], judge["name"]) == ("socket_filter", "judge")
        assert judge["tag"] == obj.programs["judge"].tag
        assert bpftool("prog", "show", "id", str(obj.programs["pass"].id))["type"] == "xdp"
        obj.programs["judge"].run(bytes(60))
        (entry,) = bpftool("map", "dump", "id", str(obj["seen"].id))
        assert entry["formatted"] == {"key": {"a": 60, "b": 0, "c": 0}, "value": 1}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"consts": {"verdikt": 1}}, "no constant 'verdikt'"),
        ({"max_entries": {"sen": 1}}, "no map 'sen'"),
        ({"map_types": {"sen": "hash"}}, "no map 'sen'"),
        ({"programs": ["juge"]}, "no program 'juge'"),
    ],
)
def test_unknown_names_are_errors_that_say_what_there_is(cache, options, text):
    with pytest.raises(InputError) as caught:
        bpfkit.load(COUNT, **options)
    assert text in str(caught.value)
    assert any(name in str(caught.value) for name in ("verdict", "seen", "judge"))


def test_closing_frees_programs_and_maps(cache):
    obj = bpfkit.load(COUNT)
    prog, table = obj.programs["judge"].id, obj["seen"].id
    obj.close()
    for get, number in ((syscall.prog_get_fd_by_id, prog), (syscall.map_get_fd_by_id, table)):
        for _ in range(100):
            try:
                os.close(get(number))
            except FileNotFoundError:
                break
            import time

            time.sleep(0.02)
        else:
            raise AssertionError("still in the kernel")


def test_cached_program_that_does_not_load_is_compiled_anew(cache):
    from bpfkit.core.compile.cache import digest
    from bpfkit.core.compile.source import Source

    bpfkit.load(COUNT).close()
    key = digest(Source.find(COUNT).key_material(), ())
    artifact = cache.get(key)
    name, insns, *rest = artifact["progs"][0]
    artifact["progs"][0] = (name, b"\xff" * len(insns), *rest)
    cache.put(key, artifact)
    with bpfkit.load(COUNT) as obj:
        assert obj.programs["judge"].run(bytes(60)).retval == 7
    assert cache.get(key)["progs"][0][1] == insns


def test_rejected_program_is_not_kept(cache):
    bad = COUNT.replace("return XDP_PASS;", "return *(int *)(long)ctx->data;")
    with pytest.raises(VerifierError) as caught:
        bpfkit.load(bad)
    assert "data_end" in str(caught.value)
    assert os.listdir(cache.path) == []


def test_full_disk_is_run_without_a_cache(tmp_path, monkeypatch):
    place = tmp_path / "full"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "tmpfs", str(place)]
    if subprocess.run(mount, stderr=subprocess.DEVNULL).returncode:
        pytest.skip("cannot mount a small tmpfs here")
    try:
        (place / "objects").mkdir(0o700)
        ballast = os.open(place / "ballast", os.O_WRONLY | os.O_CREAT)
        try:
            while True:
                os.write(ballast, bytes(4096))
        except OSError:
            pass
        finally:
            os.close(ballast)
        monkeypatch.setenv("BPFKIT_CACHE", str(place))
        with bpfkit.load(COUNT) as obj:
            assert obj.programs["judge"].run(bytes(60)).retval == 7
        assert os.listdir(place / "objects") == []
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_without_root_the_answer_is_77_and_what_to_do(tmp_path):
    program = f"import bpfkit; bpfkit.load({COUNT!r})"
    text = (
        "import sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from bpfkit.core.errors import PrivilegeError\n"
        f"try:\n    {program}\n"
        "except PrivilegeError as error:\n    print(error); sys.exit(error.exit_status)\n"
    )
    env = {k: v for k, v in os.environ.items() if not k.startswith("BPFKIT")}
    env["BPFKIT_CACHE"] = "/nonexistent/cache"
    done = subprocess.run(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable, "-c", text],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=env,
        text=True,
        cwd="/",
    )
    assert done.returncode == 77, done.stdout
    assert "needs root" in done.stdout
    assert "sudo" in done.stdout


def test_four_starts_at_once_share_one_cache(cache):
    text = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import bpfkit\n"
        "with bpfkit.load('socket/sockex1.bpf.c') as obj: print(len(obj.programs))"
    )
    children = [
        subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    assert [child.communicate(timeout=120)[0].strip() for child in children] == ["1"] * 4
    assert len(os.listdir(cache.path)) == 1
