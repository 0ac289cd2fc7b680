import sys; sys.path[:0]=["tools/bench","."]
import socket,struct,time,subprocess,json,threading
from tcp_destroy import DestroyedSockets
from bpfkit.net.links.netns import NetNS
code='''
import socket,struct
for host in ("127.0.0.1","::1"):
    f=socket.AF_INET6 if ":" in host else socket.AF_INET
    l=socket.socket(f); l.bind((host,0)); l.listen(200)
    for i in range(60):
        c=socket.socket(f); c.connect(l.getsockname()); a,_=l.accept()
        c.sendall(b"x"*(i*50+1)); 
        if i%5!=1: a.recv(100000)
        a.sendall(b"y"*77)
        if i%5!=2: c.recv(1000)
        if i%5==3: c.setsockopt(socket.SOL_SOCKET,socket.SO_LINGER,struct.pack("ii",1,0))
        if i%5==4: c.shutdown(1)
        (c if i%2 else a).close(); (a if i%2 else c).close()
    c=socket.socket(f)
    try: c.connect((host,1))
    except OSError as e: pass
'''
ns=NetNS.new("x")
with ns.entered():
    d=DestroyedSockets()
    p=subprocess.run([sys.executable,"-m","bpfkit.sockops","--json","--","/usr/bin/python3","-c",code],capture_output=True,text=True)
    time.sleep(0.3)
    print(p.stderr, p.returncode)
    truth=d.read()
ev=[json.loads(l) for l in p.stdout.splitlines()]
close={}
for e in ev:
    if e["event"] in("close","failed"): close.setdefault((e["src"],e["sport"],e["dst"],e["dport"]),[]).append(e)
from collections import Counter
print(len(truth), len(close), Counter(len(v) for v in close.values()), Counter(e["event"] for e in ev))
bad=Counter()
for k,i in truth:
    e=close.get(k)
    if not e: bad["missing",i.state]+=1; continue
    e=e[0]
    if e["event"]!="close": bad["failed"]+=1; continue
    diff={n:(e[n],getattr(i,m)) for n,m in (("bytes_sent","bytes_sent"),("bytes_received","bytes_received"),("segs_out","segs_out"),("segs_in","segs_in"),("retransmits","total_retrans")) if e[n]!=getattr(i,m)}
    bad[(str(diff) if len(diff)<2 else "many",e["state"],e["error"],e["side"])]+=1
for k,v in bad.items(): print(k,v)
