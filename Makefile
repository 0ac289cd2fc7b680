# SPDX-License-Identifier: Apache-2.0
# Short names for what tools/bootstrap.sh does; nothing is built.
.PHONY: run test test-browser check format bench clean docs pictures vm-test vm-matrix vm-kernel

run:
	tools/bootstrap.sh run

test:
	tools/bootstrap.sh test

# The notebooks in JupyterLab and Chromium; BPFKIT_ARTIFACTS=DIR keeps the screenshots there.
test-browser:
	tools/bootstrap.sh browser

check:
	tools/bootstrap.sh check

format:
	.venv/bin/ruff format .
	find bpf_c tools \( -name '*.c' -o -name '*.h' \) -print0 | xargs -0 .venv/bin/clang-format -i

bench:
	/usr/bin/python3 tools/bench/startup.py
	/usr/bin/python3 tools/bench/packet_cost.py
	/usr/bin/python3 tools/bench/hook_cost.py
	/usr/bin/python3 tools/bench/rates.py
	/usr/bin/python3 tools/bench/firewall.py
	/usr/bin/python3 tools/bench/lb_cost.py
	/usr/bin/python3 tools/bench/tcp_cc.py
	/usr/bin/python3 tools/bench/map_read.py
	/usr/bin/python3 tools/bench/sockops.py
	/usr/bin/python3 tools/bench/sk_reuseport.py
	/usr/bin/python3 tools/bench/sk_lookup.py
	/usr/bin/python3 tools/bench/sockmap.py
	/usr/bin/python3 tools/bench/cgroup_skb.py
	/usr/bin/python3 tools/bench/cgroup_sock_addr.py
	/usr/bin/python3 tools/bench/cgroup_hooks.py
	/usr/bin/python3 tools/bench/trace_cost.py
	/usr/bin/python3 tools/bench/trace_events.py
	/usr/bin/python3 tools/bench/trace_start.py
	/usr/bin/python3 tools/bench/profile_samples.py
	-/usr/bin/python3 tools/bench/lsm.py

# The guides, the notebooks and the reference (python3-sphinx, python3-myst-parser).
docs:
	/usr/bin/python3 -m sphinx -q -E -a -W --keep-going -b html tools/docs build/docs
	@echo build/docs/index.html

# README's animations, recorded in a terminal (as root; tmux).
pictures:
	/usr/bin/python3 tools/picture.py tools/sockex3.svg 'sudo python3 -m bpfkit.sockex3 --top 15 -c 6'
	/usr/bin/python3 tools/picture.py --size 100x26 tools/hooks.svg \
		'sudo python3 -m bpfkit.hooks --path forward --drop-at tc_egress'

# On stock kernels in VMs (tools/vm.md).
vm-matrix:
	/usr/bin/python3 tools/vm_matrix.py --page $(KERNELS)

vm-test:
	/usr/bin/python3 tools/vm_matrix.py --what-is-missing-here $(if $(LIVE),--live) 6.1

# The small kernel with CONFIG_BPF_LIRC_MODE2, into .vm/small: tools/vm.md.
vm-kernel:
	tools/bootstrap.sh vm-kernel

clean:
	/usr/bin/python3 -m bpfkit clean --cache
