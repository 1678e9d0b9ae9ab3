#!/usr/bin/env bash
# benchmarks/gpu.sh OUT: everything that a GPU machine can tell, in under 8 minutes, as JSON in the folder OUT.
#
# doctor, export (ResNet-101, 448 px, 80 labels, random weights, unless a bundle or checkpoint is given), plans,
# verification, tests/gpu, timings, a stream. Each step has a time limit; one that fails or is late does not stop the rest.
# Exit code 0 when every step succeeded, else 1; OUT/steps.json says which did not, OUT/log.txt what they printed.
#
#   BUNDLE=DIR        a bundle to take (copied; plans are added to the copy), instead of an export
#   CHECKPOINT=DIR    a run to export, instead of random weights
#   BACKENDS          what to try                      [onnxruntime tensorrt tensorrt_rtx]
#   PRECISIONS        of the export and the plans      [fp32 fp16]
#   MAX_BATCH ROUNDS  plans' largest batch, timed calls [8 50]
#   BACKBONE SIZE LABELS PRESET   of the random weights [resnet101 448 80 glocal]
#   PYTHON            interpreter                      [python3]
#   WORK              folder for bundle and logs       [a new one, removed at the end]
#   LIMIT             seconds for everything           [460]; a small Jetson builds longer than that
set -uo pipefail
OUT=${1:?usage: benchmarks/gpu.sh OUT}
REPO=$(cd "$(dirname "$0")/.." && pwd)
PYTHON=${PYTHON:-python3} BACKENDS=${BACKENDS:-onnxruntime tensorrt tensorrt_rtx} PRECISIONS=${PRECISIONS:-fp32 fp16}
MAX_BATCH=${MAX_BATCH:-8} ROUNDS=${ROUNDS:-50} LIMIT=${LIMIT:-460}
BACKBONE=${BACKBONE:-resnet101} SIZE=${SIZE:-448} LABELS=${LABELS:-80} PRESET=${PRESET:-glocal}
mkdir -p "$OUT" && OUT=$(cd "$OUT" && pwd) || exit 2
rm -f "$OUT"/{doctor,plans,verify,latency,stream,steps}.json "$OUT"/{tests-gpu.xml,log.txt,summary.txt}
if [ -n "${WORK:-}" ]; then mkdir -p "$WORK" && WORK=$(cd "$WORK" && pwd) || exit 2
else WORK=$(mktemp -d) && trap 'rm -rf "$WORK"' EXIT || exit 2; fi
mkdir -p "$WORK/logs" "$WORK/verify"
: > "$WORK/steps"

# Without an installed glocal, its folders stand in for it: the sub-packages of one namespace.
if ! "$PYTHON" -c 'import glocal.benchmarks.start' 2> /dev/null; then
    mkdir -p "$WORK/site/glocal"
    for folder in runtime train calib export benchmarks; do ln -sfn "$REPO/$folder" "$WORK/site/glocal/$folder"; done
    export PYTHONPATH=$WORK/site${PYTHONPATH:+:$PYTHONPATH}
fi
glocal=("$PYTHON" -m glocal.benchmarks.start)
deadline=$((SECONDS + LIMIT))

# step NAME SECONDS RESERVE COMMAND...: run it, at most SECONDS long and leaving RESERVE seconds for what comes later.
step() {
    local name=$1 limit=$2 left=$((deadline - SECONDS - $3)) start=$SECONDS code
    shift 3
    [ "$left" -lt "$limit" ] && limit=$left
    if [ "$limit" -lt 1 ]; then
        code=124
        echo "no time was left" > "$WORK/logs/$name.log"
    else
        echo "== $name (at most $limit s)"
        timeout -k 5 "$limit" "$@" > "$WORK/logs/$name.log" 2>&1 < /dev/null
        code=$?
    fi
    printf '%s\t%s\t%s\t%s\n' "$name" "$code" "$((SECONDS - start))" "$*" >> "$WORK/steps"
    [ "$code" = 0 ] || { echo "   exit code $code; the end of its log:" && tail -n 3 "$WORK/logs/$name.log" | sed 's/^/   /'; }
    return "$code"
}
options() { for value in $2; do printf -- '%s\n%s\n' "$1" "$value"; done; }
mapfile -t precisions < <(options --precision "$PRECISIONS")
mapfile -t backends < <(options --backend "$BACKENDS")

bundle=$WORK/bundle
rm -rf "$bundle"
step doctor $((LIMIT / 5)) 60 bash -c '"$@" > "$0"' "$OUT/doctor.json" "${glocal[@]}" doctor --json
if [ -n "${BUNDLE:-}" ]; then
    step copy $((LIMIT / 10)) 60 cp -r "$BUNDLE" "$bundle"
else
    if [ -z "${CHECKPOINT:-}" ]; then
        CHECKPOINT=$WORK/run
        step weights $((LIMIT / 5)) 60 "$PYTHON" -m glocal.benchmarks.random_model "$CHECKPOINT" \
            --backbone "$BACKBONE" --image-size "$SIZE" --labels "$LABELS" --preset "$PRESET"
    fi
    step export $((LIMIT * 2 / 5)) 60 "${glocal[@]}" export "$CHECKPOINT" --out "$bundle" "${precisions[@]}"
fi
if [ -d "$bundle" ]; then
    for backend in $BACKENDS; do
        case $backend in
            tensorrt | tensorrt_rtx)
                for precision in $PRECISIONS; do
                    step "plan-$backend-$precision" $((LIMIT / 3)) 100 "${glocal[@]}" export "$bundle" \
                        --backend "$backend" --precision "$precision" --max-batch "$MAX_BATCH"
                done ;;
        esac
    done
    step latency $((LIMIT / 3)) 30 "${glocal[@]}" bench latency "$bundle" "${backends[@]}" --rounds "$ROUNDS" \
        --batch 1 --batch "$MAX_BATCH" --json "$OUT/latency.json"
    step stream $((LIMIT / 8)) 30 "${glocal[@]}" bench stream "$bundle" --batch "$MAX_BATCH" --rounds 8 --json "$OUT/stream.json"
    for backend in $BACKENDS; do
        step "verify-$backend" $((LIMIT / 5)) 10 "${glocal[@]}" verify "$bundle" --backend "$backend" "${precisions[@]}" \
            --json "$WORK/verify/$backend.json"
    done
fi
[ -d "$REPO/tests/gpu" ] && step tests-gpu $((LIMIT / 5)) 5 env -C "$REPO" GLOCAL_BUNDLE="$bundle" \
    "$PYTHON" -m pytest -q -p no:cacheprovider tests/gpu --junitxml "$OUT/tests-gpu.xml"

"$PYTHON" - "$WORK" "$OUT" "$REPO" << 'PY'
import json, os, pathlib, sys

work, out, repo = map(pathlib.Path, sys.argv[1:])
given = [(os.environ.get(name), name) for name in ("BUNDLE", "CHECKPOINT", "PYTHON")]
folders = [(out, "OUT"), (work, "WORK"), (repo, "REPO"), (pathlib.Path.home(), "~"), *given]


def read(path):
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        return {"error": str(error)}


def clean(text):  # what is kept names no folder of the machine
    for folder, name in sorted(folders, key=lambda pair: -len(str(pair[0]))):
        text = text.replace(str(folder), name) if folder and len(str(folder)) > 1 else text
    return text


steps = [line.split("\t", 3) for line in (work / "steps").read_text().splitlines()]
rows = [{"step": n, "exit": int(c), "seconds": int(s), "command": clean(command)} for n, c, s, command in steps]
(out / "steps.json").write_text(json.dumps(rows, indent=2) + "\n")
plans = {path.parent.name: read(path) for path in sorted((work / "bundle" / "plans").glob("*/plan.json"))}
(out / "plans.json").write_text(json.dumps(plans, indent=2) + "\n")
verified = {path.stem: read(path) for path in sorted((work / "verify").glob("*.json"))}
(out / "verify.json").write_text(json.dumps(verified, indent=2) + "\n")
logs = [f"== {row['step']}: exit {row['exit']}, {row['seconds']} s\n{row['command']}\n" for row in rows]
texts = [(work / "logs" / f"{row['step']}.log").read_text(errors="replace") for row in rows]
(out / "log.txt").write_text("\n".join(head + text for head, text in zip(logs, texts)))
for path in out.iterdir():
    if path.suffix in (".json", ".xml", ".txt"):
        path.write_text(clean(path.read_text(errors="replace")))
lines = [f"{row['step']:28} {'ok' if row['exit'] == 0 else 'late' if row['exit'] in (124, 137) else 'FAILED':6} {row['seconds']:4} s" for row in rows]
for row in read(out / "latency.json").get("results", []):
    lines.append(f"{row['backend']} {row['precision']} batch {row['batch']}: p50 {row['p50_ms']:.2f} ms, p99 {row['p99_ms']:.2f} ms, {row['ratio']['p50']:.3f} of the plain backbone's")
if read(out / "latency.json").get("loaded"):
    lines.append("LOADED MACHINE: other programs ran; the times are too high")
(out / "summary.txt").write_text("\n".join(lines) + "\n")
print("\n".join(lines))
PY
echo "wrote $OUT"
awk -F'\t' '$2 != 0 { bad = 1 } END { exit bad }' "$WORK/steps"
