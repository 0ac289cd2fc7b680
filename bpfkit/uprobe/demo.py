# SPDX-License-Identifier: Apache-2.0
"""The demo's child, which counts and measures its calls itself."""

__all__ = ["CHILD", "DEMO"]

#: What the demo's child calls: libc's functions that neither Python nor libc itself call meanwhile.
DEMO = ("c:usleep", "c:getsid", "c:lfind", "c:_exit")
CHILD = """
import ctypes, os, sys, threading, time
libc = ctypes.CDLL("libc.so.6", use_errno=True)
SLEEPS, SIDS = 25, 500
def sleep(took):
    for _ in range(SLEEPS):
        before = time.perf_counter()
        libc.usleep(1000)
        took.append(time.perf_counter() - before)
tooks = [[] for _ in range(4)]
threads = [threading.Thread(target=sleep, args=(took,)) for took in tooks]
for thread in threads: thread.start()
for thread in threads: thread.join()
failed = sum(libc.getsid(-1 if i % 4 == 0 else 0) < 0 for i in range(SIDS))
# lfind within lfind's comparison, six deep: one element and so one comparison a level.
Compare = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
depth = searches = 0
size = ctypes.c_size_t(1)
def compare(a, b):
    global depth
    if depth < 6: search()
    return 0
compare_c = Compare(compare)
def search():
    global depth, searches
    depth += 1; searches += 1
    libc.lfind(b"key", b"key", ctypes.byref(size), 4, compare_c)
    depth -= 1
for _ in range(10): search()
child = os.fork()
if not child: libc._exit(7)
status = os.waitpid(child, 0)[1]
took = [t for each in tooks for t in each]
print(len(took), sum(took) / len(took), SIDS, failed, searches, os.WEXITSTATUS(status) == 7)
"""
