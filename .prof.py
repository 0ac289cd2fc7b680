import sys,os,time
sys.path[:0]=["tools/bench","."]
import sockops as B, tempfile, bpfkit
from bpfkit.core.cgroups import Cgroup
from bpfkit.net.links.netns import NetNS
from bpfkit.sockops.show import event_of
from bpfkit.show.jsonl import json_lines
with tempfile.TemporaryDirectory() as d, NetNS.new("x") as ns, ns.entered(), Cgroup.new("b") as g, bpfkit.load("sock/sockops.bpf.c",consts={"report":B.USUAL},cflags=["-DHAS_MPTCP"]) as o, o.programs["sockops"].attach_cgroup(g.path):
    p=B.build(d); B.connections(p,g,7000,1,1)
    buf=o["events"].open()
    t=time.perf_counter(); recs=list(buf.drain()); t1=time.perf_counter(); ev=[event_of(r) for r in recs]; t2=time.perf_counter()
    rows=[{"ts": round(e.time, 6), "event": e.kind, **e.fields} for e in ev]; t3=time.perf_counter(); s=json_lines(rows); t4=time.perf_counter()
    n=len(recs); print(n,"decode %.1f us, event_of %.1f, row %.1f, json %.1f"%((t1-t)/n*1e6,(t2-t1)/n*1e6,(t3-t2)/n*1e6,(t4-t3)/n*1e6), o["count"].sum(2), len(bytes(recs[0])))
    buf.close()
