#!/usr/bin/env bash
# One run on several hosts, without a scheduler: the same command on each host, with its own --node.
# run:     launch/hosts.sh --head 10.0.0.1 --node 0 pretrain data.path=/shared/shards run.dir=/shared/runs/mine
#          launch/hosts.sh --head 10.0.0.1 --node 1 pretrain data.path=/shared/shards run.dir=/shared/runs/mine
# --head is an address or name of host 0 that all hosts can reach, on the network that gradients shall take.
set -euo pipefail
usage="usage: launch/hosts.sh --head ADDRESS --node K [--nodes 2] [--port 29400] [--ranks N] [--cpu] VERB key=value ..."

head='' node='' nodes=2 port=29400
while [ $# -gt 0 ]; do
  case $1 in
    --head) head=${2:?$usage}; shift 2 ;;
    --node) node=${2:?$usage}; shift 2 ;;
    --nodes) nodes=${2:?$usage}; shift 2 ;;
    --port) port=${2:?$usage}; shift 2 ;;
    *) break ;;
  esac
done
[ "$head" ] && [ "$node" ] && [ $# -gt 0 ] || { echo "$usage" >&2; exit 2; }
[[ " $* " == *" run.dir="* ]] || { echo "launch/hosts.sh: give run.dir=FOLDER, one that all hosts share" >&2; exit 2; }

there() { # a pod has its name, and node 0 listens, some time after the command
  address=$(getent ahostsv4 "$head" | awk '{print $1; exit}') && [ "$address" ] || return 1
  [ "$node" = 0 ] || timeout 5 bash -c ": <>/dev/tcp/$address/$port" 2>/dev/null
}
until there; do
  [ $SECONDS -lt 600 ] || { echo "launch/hosts.sh: no answer from --head $head, port $port, in 10 minutes" >&2; exit 1; }
  [ "${told:-}" ] || echo "launch/hosts.sh: waiting for --head $head, port $port" >&2
  told=yes
  sleep 2
done
if command -v ip >/dev/null; then # name the network: a host's own name often leads to 127.0.1.1
  interface=$(ip -o -4 address show to "$address/32" | awk '{print $2; exit}')
  interface=${interface:-$(ip -o route get "$address" | sed -n 's/.* dev \([^ ]*\).*/\1/p')}
  own=$(ip -o -4 address show dev "$interface" | awk '{sub("/.*", "", $4); print $4; exit}')
  export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-$interface} NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-$interface}
fi
meet="--nnodes $nodes --rdzv-backend c10d --rdzv-endpoint $address:$port --rdzv-conf is_host=$((node == 0))"
export CASS_SCALE_MEET="$meet --rdzv-id cass-scale --local-addr ${own:-$(hostname)}"
exec "$(dirname "${BASH_SOURCE[0]}")/local.sh" "$@"
