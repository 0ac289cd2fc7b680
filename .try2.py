from bpfkit.sockops.rules import *
print(jiffies_per_second(), [ (r.key(), r.value(250)) for r in parse_rules(["127.0.0.0/8:initial_rto=100ms,cc=reno,tos=0x10","::/0:pacing=80mbit,sndbuf=64k,iw=4"])])
for bad in ["x","10.0.0.1/8:cc=reno","10.0.0.0/8:cc=nope","10.0.0.0/8:iw=0","10.0.0.0/33:iw=1","::/0:foo=1","::/0:iw=1,iw=2","::/0:tos=256","::/0:initial_rto=5", "1.2.3.4:pacing=99G"]:
    try: parse_rules([bad]); print("NOT", bad)
    except Exception as e: print(type(e).__name__, e)
