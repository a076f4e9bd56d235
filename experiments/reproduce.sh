#!/usr/bin/env bash
# The tables of experiments/README.md on real data, from raw files to reports:  bash experiments/reproduce.sh text|images|speech
#
#   DATA=../shared/data   folder with text/, glue/, images/ and speech/ (read only)
#   WORK=~/d2v-tables     prepared data, runs, registry and reports; a lane that was cut off goes on when run again
#   SHARE=1               share of the updates: SHARE=0.1 tries a lane out
#
# On two CPU cores a lane takes one to three hours; runs and trials that are complete are passed over.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
DATA=$(realpath "${DATA:-../shared/data}") WORK=${WORK:-$HOME/d2v-tables} SHARE=${SHARE:-1}
export D2V_HOME=$WORK/home
PREPARED=$WORK/prepared
D2V=(.venv/bin/python -m d2v_platform.cli)
mkdir -p "$PREPARED"

d2v() { echo "[$(date +%T)] d2v $*" >&2; "${D2V[@]}" "$@"; }
updates() { awk -v n="$1" -v share="$SHARE" 'BEGIN { n = int(n * share + 0.5); print n < 6 ? 6 : n }'; }
warmup() { awk -v n="$1" -v share="$SHARE" 'BEGIN { n = int(n * share); print n < 1 ? 1 : n }'; }
# once NAME COMMAND...: a training that has finished is refused under its name; here it is passed over.
once() {
  local mark=$WORK/done/$1
  shift
  [ -f "$mark" ] || { "$@"; mkdir -p "$WORK/done"; touch "$mark"; }
}
report() { for run in "$@"; do d2v report "$run" --out "$WORK/reports/$run"; done; }
random_weights() { [ "$1" = random ] && echo model.no_pretrained_weights=true || echo model.no_pretrained_weights=false; }

text() {
  [ -f "$PREPARED/text/valid.idx" ] || d2v prepare text --train "$DATA/text/gutenberg_books/train.txt" \
    --valid "$DATA/text/gutenberg_books/valid.txt" --build-dict --dest "$PREPARED/text"
  once text-small d2v train tiny/text_pretraining task.data="$PREPARED/text" platform.num_workers=2 \
    optimization.max_update="$(updates 600)" model.ema_anneal_end_step="$(updates 300)" \
    optimizer.groups.default.lr_scheduler.warmup_updates="$(warmup 60)" checkpoint.save_interval_updates=50 \
    platform.run_name=text-small platform.register_as=data2vec2-text-small platform.alias=champion
  # Rates for a network that has a thirtieth of the base model's parameters.
  local weights common
  for weights in pretrained random; do
    common=(task.data="$DATA/glue" model.model_path=models:/data2vec2-text-small@champion
      "$(random_weights $weights)" 'grid.lr=[1.0e-4,2.0e-4,5.0e-4,1.0e-3]' fixed.task.max_positions=128
      fixed.task.shorten_method=truncate fixed.dataset.num_workers=0 test_files=false register.name=null register.alias=null)
    d2v sweep glue "${common[@]}" 'grid.task=[cola,sst_2,sts_b]' max_updates="$(updates 120)" \
      fixed.dataset.validate_interval_updates="$(updates 60)" platform.run_name=small-glue-$weights
    # RTE's pairs of paragraphs cost several times as much an update.
    d2v sweep glue "${common[@]}" 'grid.task=[rte]' max_updates="$(updates 60)" \
      fixed.dataset.validate_interval_updates="$(updates 30)" platform.run_name=small-rte-$weights
  done
  report text-small small-{glue,rte}-{pretrained,random}
}

images() {
  local sets=$DATA/images tree=$PREPARED/images generation weights recipe run
  mkdir -p "$tree/train"
  # Pretraining reads the images of two sets; probes and fine-tuning the labelled clothes alone.
  ln -sfn "$sets"/clothing10_160/train/* "$sets"/imagenet_sample_160/train/* "$tree/train/"
  ln -sfn "$sets/clothing10_160/train" "$tree/bank"
  ln -sfn "$sets/clothing10_160/val" "$tree/val"
  for generation in 2 1; do
    recipe=tiny/image_pretraining length=1200 own=(lr_scheduler.warmup_updates="$(warmup 200)")
    if [ $generation = 2 ]; then
      length=9000 own=(optimizer.groups.default.lr_scheduler.warmup_updates="$(warmup 200)" \
        model.ema_anneal_end_step="$(updates 3000)")
    else
      recipe=${recipe}_v1
    fi
    once image-small-v$generation d2v train $recipe task.data="$tree" platform.num_workers=0 optimization.max_update="$(updates $length)" \
      "${own[@]}" dataset.disable_validation=false dataset.valid_subset=val task.probe_bank=bank \
      dataset.validate_interval=1000000 dataset.validate_interval_updates="$(updates $((length / 6)))" \
      checkpoint.save_interval_updates="$(updates $((length / 6)))" platform.run_name=image-small-v$generation \
      platform.register_as=data2vec$generation-image-small platform.alias=champion
    d2v probe "$tree" --bank bank --subset val --model models:/data2vec$generation-image-small@champion \
      --random-weights 3
    [ $generation = 2 ] && recipe=image_finetuning || recipe=image_finetuning_v1
    for weights in pretrained random; do
      run=image-small-v$generation-$weights
      d2v sweep small_images "grid.task=[$recipe]" grid.lr=[1.0e-3] task.data="$sets/clothing10_160" "$(random_weights $weights)" \
        model.model_path=models:/data2vec$generation-image-small@champion dataset.num_workers=0 \
        optimization.max_update="$(updates 300)" dataset.validate_interval_updates="$(updates 100)" \
        optimizer.groups.default.lr_scheduler.warmup_updates="$(warmup 30)" platform.run_name=$run
      report $run
    done
    report image-small-v$generation
  done
}

speech() {
  local sets=$DATA/speech ready=$PREPARED/speech set split order length weights common
  if [ ! -d "$ready/fsdd-minutes/10m" ]; then
    for set in fsdd asterisk_prompts_en; do
      for split in train valid test; do
        d2v prepare audio-manifest "$sets/$set/$split" --dest "$ready/$set" --valid-percent 0 --name $split
        d2v prepare audio-labels "$ready/$set/$split.tsv" --output-dir "$ready/$set" --output-name $split
      done
      [ $set = fsdd ] && order=2 || order=3
      d2v prepare language-model "$ready/$set/train.wrd" --dest "$ready/$set/lm" --order $order
    done
    d2v prepare audio-subsets "$ready/fsdd/train.tsv" --dest "$ready/fsdd-minutes" --minutes 1,3,10
  fi
  if [ ! -f "$ready/pretrain/train.tsv" ]; then
    mkdir -p "$ready/recordings"
    ln -sfn "$sets/ljspeech_mini/train" "$ready/recordings/ljspeech_mini"
    ln -sfn "$sets/asterisk_prompts_en/train" "$ready/recordings/asterisk_prompts_en"
    strings_of_digits "$sets/fsdd/train" "$ready/recordings/fsdd"
    d2v prepare audio-manifest "$ready/recordings" --dest "$ready/pretrain" --valid-percent 0
  fi
  once speech-small d2v train tiny/audio_pretraining task.data="$ready/pretrain" platform.num_workers=0 \
    optimization.max_update="$(updates 2400)" lr_scheduler.warmup_updates="$(warmup 200)" \
    model.ema_anneal_end_step="$(updates 2400)" checkpoint.save_interval_updates=200 \
    platform.run_name=speech-small platform.register_as=data2vec2-speech-small platform.alias=champion
  for weights in pretrained random; do
    common=(model.w2v_path=models:/data2vec2-speech-small@champion "$(random_weights $weights)" dataset.num_workers=0)
    for set in fsdd asterisk_prompts_en; do
      # Whole sentences leave CTC's phase of blanks later than single words.
      [ $set = fsdd ] && length=1200 || length=3000
      d2v sweep small_speech "grid.task=[$set]" 'grid.seed=[1,2,3]' task.data="$ready" "${common[@]}" \
        optimization.max_update="$(updates $length)" dataset.validate_interval_updates="$(updates $((length / 4)))" \
        evaluate.lexicon="$ready/$set/lm/lexicon.txt" evaluate.lmpath="$ready/$set/lm/lm.arpa" \
        platform.run_name=$set-$weights
    done
    d2v sweep minutes task.data="$ready/fsdd-minutes" "${common[@]}" 'grid.seed=[1,2,3]' \
      optimization.max_update="$(updates 400)" dataset.validate_interval_updates="$(updates 100)" \
      evaluate.lexicon="$ready/fsdd/lm/lexicon.txt" evaluate.lmpath="$ready/fsdd/lm/lm.arpa" \
      register.name=null register.alias=null platform.run_name=minutes-$weights
  done
  report speech-small {fsdd,asterisk_prompts_en,minutes}-{pretrained,random}
}

# strings_of_digits FROM TO: the training clips of each speaker in random order, ten to a file of some 4 s. A digit alone,
# of 0.2 to 1.4 s, has next to no context to predict from: pretrained on those, features are worse than random ones.
strings_of_digits() {
  .venv/bin/python - "$1" "$2" <<'PYTHON'
import random
import sys
from pathlib import Path

import numpy as np
import soundfile

source, destination = map(Path, sys.argv[1:])
destination.mkdir(parents=True, exist_ok=True)
random.seed(1)
for speaker in sorted(path for path in source.iterdir() if path.is_dir()):
    clips = sorted(speaker.rglob("*.flac"))
    random.shuffle(clips)
    for start in range(0, len(clips), 10):
        digits = [soundfile.read(clip, dtype="int16") for clip in clips[start : start + 10]]
        samples, rate = np.concatenate([samples for samples, _ in digits]), digits[0][1]
        soundfile.write(destination / f"{speaker.name}_{start:04d}.flac", samples, rate)
PYTHON
}

case "${1:-}" in
  text | images | speech) "$1" ;;
  *) sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 2 ;;
esac
