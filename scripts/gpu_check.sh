#!/usr/bin/env bash
# Check a GPU in one call of under ten minutes: correctness, speed, and the comparison of Park et al. (2019) on CIFAR-10.
# Writes OUT/gpu_check.json and OUT/gpu_check.md after every stage. Running it again with the same OUT resumes: finished
# stages are skipped, and an interrupted sweep resumes from its checkpoints.
#
#   scripts/gpu_check.sh [--out DIR] [--seconds N] [--epochs N] [--seeds N] [--device cpu|cuda] [--tiny] [STAGE...]
#
# Stages: checks (tests/gpu/test_gpu.py), bench (vaerun-bench), table (13 cells of vlae_cifar10_small). VAERUN_DATA must hold
# cifar10.npz. --tiny runs everything at tiny sizes, on any machine; PYTHON is the interpreter (python3).
set -uo pipefail
out=outputs/gpu_check seconds=570 epochs=100 seeds=1 device=cuda tiny="" stages=()
while [ $# -gt 0 ]; do
    case "$1" in
        --out) out=$2; shift 2 ;;
        --seconds) seconds=$2; shift 2 ;;
        --epochs) epochs=$2; shift 2 ;;
        --seeds) seeds=$2; shift 2 ;;
        --device) device=$2; shift 2 ;;
        --tiny) tiny=yes; shift ;;
        checks | bench | table) stages+=("$1"); shift ;;
        *) echo "gpu_check.sh: unknown argument '$1'; usage is at the top of this file" >&2; exit 2 ;;
    esac
done
[ ${#stages[@]} -gt 0 ] || stages=(checks bench table)
here=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
mkdir -p "$out" || exit 2
out=$(cd "$out" && pwd)
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
began=$(date +%s)
left() { echo $((seconds - ($(date +%s) - began))); }
report() { "$python" "$here/scripts/gpu_report.py" "$out"; }
# Run a stage unless it is finished; record its time, exit code and commit.
stage() {
    local name=$1 status=0 from
    shift
    if [ -e "$out/$name.done" ]; then echo "== $name: already done"; return 0; fi
    if [ "$(left)" -lt 20 ]; then echo "== $name: out of time; run again to resume"; return 1; fi
    echo "== $name ($(left) s left): $*"
    from=$(date +%s)
    timeout --signal=TERM --kill-after=60 "$(left)" "$@" >"$out/$name.log" 2>&1 || status=$?
    tail -n 4 "$out/$name.log"
    printf '{"command": "%s", "status": %d, "seconds": %d}\n' "$*" "$status" "$(($(date +%s) - from))" >>"$out/$name.calls"
    [ "$status" -ne 0 ] || touch "$out/$name.done"
    report >/dev/null
    return "$status"
}

failed=0
for name in "${stages[@]}"; do
    case "$name" in
        checks)
            tests="test_replays or test_kernels or test_runs or test_commands"
            stage checks "$python" -m pytest -q -W default -p no:cacheprovider "$here/tests/gpu/test_gpu.py" -k "$tests" || failed=1
            ;;
        bench)
            words=(steps together evaluation --rounds 5 --device "$device" --json "$out/bench.json")
            [ -z "$tiny" ] || words+=(--quick)
            stage bench "$python" -m vaerun.cli.bench "${words[@]}" || failed=1
            ;;
        table)
            cells=vae
            for model in sa_vae vae_hf vlae; do for t in 1 2 4 8; do cells+=",${model}_t$t"; done; done
            words=(-m experiment=vlae_cifar10_small "cell=$cells" "seed=range($seeds)" "trainer.epochs=$epochs")
            words+=("trainer.device=$device" "sweep.together=$((13 * seeds))" "output_dir=$out/table")
            words+=(evaluation.pictures=0 trainer.log_every=200)
            [ -z "$tiny" ] || words=(-m data=digits "cell=vae,vlae_t1" "seed=range($seeds)" "trainer.device=$device" \
                trainer.max_steps=30 evaluation.samples=20 sweep.together=2 "output_dir=$out/table")
            stage table "$python" -m vaerun.cli.main "${words[@]}" || failed=1
            ;;
    esac
done
report
exit "$failed"
