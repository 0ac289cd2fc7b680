import bpfkit
try:
    o=bpfkit.load("sock/sockops_where.bpf.c"); print(o)
except bpfkit.BpfkitError as e:
    print(e); print((e.log or "")[-3000:])
