# SPDX-License-Identifier: Apache-2.0
"""lirc's decoder, compiled for this machine and fed with pulses; its remote and its messages.

tests/vm runs the program itself, on a kernel that has the program type, and compares it there with
the kernel's own encoder and decoder.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bpfkit.lirc import keys, remote

ROOT = Path(__file__).resolve().parents[2]
PULSE, SPACE, TIMEOUT, OVERFLOW = 0x01000000, 0, 0x03000000, 0x04000000

#: In place of bpfkit.h: maps are arrays, and helpers write down what they are called with.
STUB = """
#include <stdbool.h>
#include <stdint.h>
typedef uint32_t u32;
typedef uint64_t u64;
#define SEC(name)
#define __always_inline inline
#define LOAD_CONST(number, name, def) static u64 name(void) { return def; } struct unused_##name
#define BPF_ARRAY(name, type, size)                                              \\
	static type name##_values[size];                                         \\
	static type *name##_lookup(u32 *key) { return &name##_values[*key]; }     \\
	static struct { type *(*lookup)(u32 *); } name = { name##_lookup }
static void count_one(u64 *n) { ++*n; }
u64 now_ns, said[64];
u32 said_count;
static u64 bpf_ktime_get_ns(void) { return now_ns; }
static void bpf_rc_repeat(void *ctx) { said[said_count++ % 64] = ~0ull; }
static void bpf_rc_keydown(void *ctx, u32 protocol, u64 scancode, u32 toggle)
{
	said[said_count++ % 64] = (u64)protocol << 40 | (u64)toggle << 32 | scancode;
}
"""
NEC, NECX, NEC32, RC5 = 9, 10, 11, 2


class Decoder:
    """The compiled decoder."""

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(path))
        self.said = (ctypes.c_uint64 * 64).in_dll(self.library, "said")
        self.count = ctypes.c_uint32.in_dll(self.library, "said_count")
        self.now = ctypes.c_uint64.in_dll(self.library, "now_ns")
        self.now.value = 10**12

    def sample(self, value: int) -> None:
        self.library.decode(ctypes.byref(ctypes.c_uint32(value)))

    def hear(self, lengths: list[int], silence: int = 125_000) -> list[object]:
        """What comes of a train and of the silence behind it: (protocol, scancode, toggle)."""
        self.count.value = 0
        for at, length in enumerate(lengths):
            self.sample(length | (SPACE if at % 2 else PULSE))
            self.now.value += length * 1000
        self.sample(silence | TIMEOUT)
        self.now.value += silence * 1000
        return [
            "repeat" if word == 2**64 - 1 else (word >> 40, word & 0xFFFFFFFF, word >> 32 & 1)
            for word in self.said[: self.count.value]
        ]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    gcc = shutil.which("gcc")
    if gcc is None:
        pytest.skip("no gcc")
    folder = tmp_path_factory.mktemp("lirc")
    (folder / "bpfkit").mkdir()
    (folder / "bpfkit/bpfkit.h").write_text(STUB)
    (folder / "uapi").symlink_to("/usr/include")
    source = ROOT / "bpf_c/misc/lirc.bpf.c"
    words = [gcc, "-shared", "-fPIC", "-O1", "-x", "c", f"-I{folder}", "-o", folder / "lirc.so"]
    subprocess.run([*words, source], check=True)
    return folder / "lirc.so"


@pytest.fixture
def decoder(library: Path, tmp_path: Path) -> Decoder:
    """A decoder of its own: the state is in the library."""
    return Decoder(Path(shutil.copy(library, tmp_path / "lirc.so")))


def test_every_command_of_an_address(decoder: Decoder) -> None:
    for command in range(256):
        assert decoder.hear(remote.nec(4, command)) == [(NEC, 0x0400 | command, 0)]
        heard = decoder.hear(remote.nec_extended(0x1234, command))
        assert heard == [(NECX, 0x123400 | command, 0)]
    assert decoder.hear(remote.nec_frame(0x12345678)) == [(NEC32, 0x56781234, 0)]


def test_rc5_with_toggle_and_the_seventh_bit(decoder: Decoder) -> None:
    for address in range(32):
        for command in (0, 1, 0x3F, 0x40, 0x55, 0x7F):
            for toggle in (0, 1):
                heard = decoder.hear(remote.rc5(address, command, toggle))
                assert heard == [(RC5, address << 8 | command, toggle)]


@pytest.mark.parametrize("by", [-250, -100, 100, 250])
def test_stretched_pulses(decoder: Decoder, by: int) -> None:
    assert decoder.hear(remote.stretched(remote.nec(4, 2), by)) == [(NEC, 0x0402, 0)]
    assert decoder.hear(remote.stretched(remote.rc5(5, 17, 1), by)) == [(RC5, 0x0511, 1)]


def test_repeats_belong_to_the_frame_before(decoder: Decoder) -> None:
    """Not to an older one: not after silence, a rejected frame, or a key of another protocol."""
    gap = 40_000
    repeat = remote.NEC_REPEAT
    assert decoder.hear(repeat, gap) == []
    assert decoder.hear(remote.nec(4, 2), gap) == [(NEC, 0x0402, 0)]
    assert decoder.hear(repeat, gap) == ["repeat"]
    assert decoder.hear(repeat, gap) == ["repeat"]
    frame = remote.nec(4, 3)
    assert decoder.hear(frame[:40] + frame[42:], gap) == []
    assert decoder.hear(repeat, gap) == []
    assert decoder.hear(remote.nec(4, 2), 300_000) == [(NEC, 0x0402, 0)]
    assert decoder.hear(repeat, gap) == []
    assert decoder.hear(remote.nec(4, 2), gap) == [(NEC, 0x0402, 0)]
    assert decoder.hear(remote.rc5(5, 17, 0), gap) == [(RC5, 0x0511, 0)]
    assert decoder.hear(repeat, gap) == []


def test_a_spoilt_frame_gives_nothing_and_the_next_is_decoded(decoder: Decoder) -> None:
    good, phase = remote.nec(0x55, 7), remote.rc5(9, 9, 0)
    ambiguous = list(good)
    ambiguous[21] = 1125
    for frame in (
        good[:-1],
        good[:31],
        good[:40] + good[42:],
        good[:40] + good[38:],
        ambiguous,
        [*good[:20], 60_000, *good[21:]],
        phase[:-2],
        [*phase[:5], 2667, *phase[6:]],
        [300] * 67,
        [9000],
    ):
        assert decoder.hear(frame) == [], frame
        assert decoder.hear(remote.nec(4, 2)) == [(NEC, 0x0402, 0)]


def test_overflow_ends_a_frame(decoder: Decoder) -> None:
    frame = remote.nec(4, 2)
    for at, length in enumerate(frame):
        if at == 40:
            decoder.sample(0xFFFFFF | OVERFLOW)
        decoder.sample(length | (SPACE if at % 2 else PULSE))
    assert decoder.hear([]) == []
    assert decoder.hear(frame) == [(NEC, 0x0402, 0)]


def test_names_of_keys() -> None:
    assert keys.key_number("KEY_VOLUMEUP") == keys.key_number("volumeup") == 115
    assert keys.key_number("115") == 115 and keys.key_name(115) == "KEY_VOLUMEUP"
    assert keys.key_number("none-such") is None and keys.key_name(0) is None
    assert remote.scancode_text("nec-x", 0x12340D) == "0x12340d"


@pytest.mark.parametrize("words", [["--key", "x=KEY_OK"], ["--key", "1=KEY_NONE_SUCH"]])
def test_bad_keys_are_refused(words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bpfkit.lirc", *words], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 2 and words[1].partition("=")[2] in done.stderr
