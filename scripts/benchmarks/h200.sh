#!/usr/bin/env bash
# The accelerator's run, on a machine with CUDA and PyTorch but without MLX and without a network.
# usage: h200.sh keep               lay the carried wheels (.whl-*) by: one call cannot carry them all
#        h200.sh run [h200.py's]    install them, make models with random weights, measure, profile
# A wheel that was split carries .part0, .part1, ... behind its name. Results go to $OUT.
set -euo pipefail
cd "$(dirname "$0")/../.."
bag=${MLXO_BAG:-/tmp/mlxo-bag}
mkdir -p "$bag/part" "$bag/whl" "$bag/tokenizer"
for folder in .whl-*; do
    for file in "$folder"/*.whl "$folder"/*.part[0-9] "$folder"/tokenizer/*; do
        [ -e "$file" ] || continue
        case $file in
            *.part[0-9]) cp "$file" "$bag/part/" ;;
            */tokenizer/*) cp "$file" "$bag/tokenizer/" ;;
            *) cp "$file" "$bag/whl/" ;;
        esac
    done
done
[ "${1:-}" = run ] || { ls -l "$bag"/*; exit 0; }
shift

for first in "$bag"/part/*.part0; do
    cat "${first%0}"[0-9] >"$bag/whl/$(basename "${first%.part0}")"
done
site=$bag/site
python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" "$bag"/whl/*.whl
for packed in "$bag"/tokenizer/*.gz; do
    [ -e "$packed" ] && gzip -df "$packed"
done

# MLX looks for CUDA's libraries and headers in the folder beside its own: lend it PyTorch's.
nvidia=$(python3 -c 'import nvidia; print(list(nvidia.__path__)[0])' 2>/dev/null || true)
if [ -n "$nvidia" ]; then
    [ -e "$site/nvidia" ] || ln -s "$nvidia" "$site/nvidia"
    for folder in "$nvidia"/*/lib; do
        LD_LIBRARY_PATH=$folder:${LD_LIBRARY_PATH:-}
    done
    export LD_LIBRARY_PATH
fi
[ -n "${CUDA_HOME:-}" ] || ! [ -d /usr/local/cuda ] || export CUDA_HOME=/usr/local/cuda
# A wheel of mlxo among the carried ones comes before the checkout: a run of a fixed state.
export PYTHONPATH=$site:$PWD PYTHONUNBUFFERED=1
exec python3 scripts/benchmarks/h200.py --tokenizer "$bag/tokenizer" "$@"
