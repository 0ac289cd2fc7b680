import bpfkit, sys
from bpfkit.core.errors import BpfkitError
try:
    o=bpfkit.load("sock/sockops.bpf.c", consts={"report":127,"has_rules":1,"traced":1}, cflags=["-DHAS_MPTCP"])
    print(o)
    for n,p in o.programs.items(): print(n,p.info().get("xlated_prog_len") if callable(getattr(p,"info",None)) else p.info)
except BpfkitError as e:
    print(e); print((e.log or "")[-3000:])
