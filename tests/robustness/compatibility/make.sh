#!/usr/bin/env bash
# Make runs/ and expected/ again: bash make.sh, with the commands of vaerun 0.1.0 (commit fe1248e) first on PATH.
#
# The runs are made in /tmp/vaerun-0.1.0/runs, with the program in /tmp/vaerun-0.1.0/vaerun, because .hydra/hydra.yaml,
# run.log and others name both, and as on a machine called `host`, which TensorBoard's file names hold. What no test
# needs is removed at the end.
set -euo pipefail
beside=$(cd "$(dirname "$0")" && pwd)
place=/tmp/vaerun-0.1.0
rm -rf "$place/runs" "$place/names" "$place/expected"
mkdir -p "$place/runs" "$place/names"
cd "$place/runs"
cat > ../names/sitecustomize.py <<'END'
import platform, socket
socket.gethostname = lambda: "host"
platform.platform = lambda *words, **options: "Linux"
END
export PYTHONPATH="$place/names${PYTHONPATH:+:$PYTHONPATH}" VAERUN_CACHE="$place/cache" OMP_NUM_THREADS=1
unset VAERUN_DATA

network=("model.encoder.hidden=[8]" "model.decoder.hidden=[8]" model.latent_dim=2)
short=(trainer.device=cpu trainer.max_steps=60 trainer.log_every=20 evaluation.samples=20 evaluation.images=20)

vaerun model=vae "${network[@]}" "${short[@]}" evaluation.arrays=true output_dir=vae
vaerun model=vlae "${network[@]}" "${short[@]}" model.inference.steps=2 output_dir=vlae
vaerun-eval run=vlae evaluation.samples=40 evaluation.split=validation seed=3 trainer.device=cpu
vaerun model=infogan network=gan_mlp "model.generator.hidden=[8]" "model.discriminator.hidden=[8]" model.latent_dim=4 \
    "${short[@]:0:3}" data.train_images=250 trainer.batch_size=64 evaluation.images=60 evaluation.quality=false \
    evaluation.generated.samples=50 output_dir=infogan

long=(model=vae "${network[@]}" "${short[@]:0:1}" trainer.max_steps=400 trainer.epochs=100 trainer.log_every=10
    trainer.checkpoint_seconds=0.1 evaluation.samples=20 evaluation.images=20 evaluation.every=5 evaluation.pictures=0)
vaerun "${long[@]}" output_dir=whole
vaerun "${long[@]}" output_dir=interrupted &
until grep -qs '"step": 200,' interrupted/metrics.jsonl; do sleep 0.01; done
kill -TERM $!
wait $! && code=0 || code=$?
[ "$code" -eq 75 ]

vaerun -m model=vae,vlae seed=0,1 "${network[@]}" "${short[@]}" output_dir=sweep

mkdir ../expected
vaerun-table . --list --format csv --output ../expected/list.csv
vaerun-table sweep --format md --output ../expected/sweep.md

find . \( -name '.lock' -o -name '.sweep.lock' -o -name previous.pt -o -name '*.png' ! -path ./vae/figures/samples.png \) -delete
find . -name '*tfevents*' ! -path './interrupted/*' -delete
find sweep -name last.pt -delete
find . -type d -empty -delete
python - <<'END'
import hashlib, json
from pathlib import Path
import torch, vaerun

found = {}
for path in sorted(Path(".").rglob("result.json")):
    digest = hashlib.sha256()
    for name, value in sorted(vaerun.load_run(path.parent).model.state_dict().items()):
        digest.update(name.encode() + value.numpy().tobytes())
    found[str(path.parent)] = digest.hexdigest()
Path("../expected/parameters.json").write_text(json.dumps(found, indent=2) + "\n")
END
rm -rf "$beside/runs" "$beside/expected"
cp -r . "$beside/runs"
cp -r ../expected "$beside/expected"
