#!/usr/bin/env bash
# The figures and tables of experiments/README.md on real data, from raw files to reports. A lane that was cut off goes on
# when run again: runs and trials that are complete are passed over.
#
#   bash experiments/reproduce.sh LANE...
#
#   lane        CPU-hours  makes
#   text              1.5  GLUE from pretrained and random weights: table, curves
#   words             1.2  what a small text model that orders words by distance learns: probes, word order
#   images            3.0  kNN, linear probe, fine-tuning of data2vec 2.0, 1 and MAE: table, curves
#   speech            3.0  word error rates from 1 minute to 15: tables, curves
#   speed             0.3  seconds of steps, CPU and memory
#   reference         0.3  reference curves of the tiny recipes, for d2v report RUN --reference
#   quality          12.0  a probe over CPU-minutes of data2vec 2.0, 1 and (images) lightly's MAE: one plot a modality
#   clones            3.7  a probe over 1 to 16 clones at equal CPU time: one sweep and plot a modality
#
#   DATA=../shared/data   folder with text/, glue/, images/ and speech/ (read only)
#   WORK=~/d2v-tables     prepared data, runs, registry, tables/, figures/ and reports/
#   MINUTES=90            CPU-minutes of each run of quality; with more of them a run goes on where it stopped
#   SHARE=1               share of the updates: SHARE=0.02 tries a lane out
#
# What is swept stands in configs/sweep/small_*.yaml, minutes.yaml and clones_*.yaml; copy and edit those.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
case "${1:---help}" in
  -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; exit 0 ;;
esac
for lane in "$@"; do
  [[ " text words images speech speed reference quality clones " == *" $lane "* ]] || {
    echo "error: there is no lane '$lane'; there are text, words, images, speech, speed, reference, quality, clones" >&2
    exit 2
  }
done
DATA=${DATA:-../shared/data}
[ -d "$DATA/text" ] || { echo "error: DATA=$DATA has no text/; give the folder with text/, glue/, images/, speech/" >&2; exit 2; }
DATA=$(realpath "$DATA") WORK=${WORK:-$HOME/d2v-tables} SHARE=${SHARE:-1} MINUTES=${MINUTES:-90}
export D2V_HOME=$WORK/home
PREPARED=$WORK/prepared
D2V=(.venv/bin/python -m d2v_platform.cli)
mkdir -p "$PREPARED" "$WORK"/{done,tables,figures,reports}

d2v() { echo "[$(date +%T)] d2v $*" >&2; "${D2V[@]}" "$@"; }
updates() { awk -v n="$1" -v share="$SHARE" 'BEGIN { n = int(n * share + 0.5); print n < 6 ? 6 : n }'; }
warmup() { awk -v n="$1" -v share="$SHARE" 'BEGIN { n = int(n * share); print n < 1 ? 1 : n }'; }
# once NAME COMMAND...: a training that has finished is refused under its name; here it is passed over.
once() {
  local mark=$WORK/done/$1
  shift
  [ -f "$mark" ] || { "$@"; touch "$mark"; }
}
# sweep NAME DEFINITION UPDATES WORDS...: a sweep, its report and its table; UPDATES of a trial, cut by SHARE.
sweep() {
  local name=$1 definition=$2 length=$3 cut=()
  shift 3
  [ "$SHARE" = 1 ] || [ "$length" = 1000000 ] || cut=(max_updates="$(updates "$length")")
  d2v sweep "$definition" "$@" "${cut[@]}" platform.run_name="$name"
  report "$name"
  cp "$D2V_HOME/sweeps/$name/results.md" "$WORK/tables/$name.md"
}
# report RUN [OPTIONS]: its page, and its curves among the figures.
report() {
  d2v report "$@" --out "$WORK/reports/$1" > /dev/null
  cp "$WORK/reports/$1/report.png" "$WORK/figures/$1.png"
}

text_data() {
  [ -f "$PREPARED/text/valid.idx" ] || d2v prepare text --train "$DATA/text/gutenberg_books/train.txt" \
    --valid "$DATA/text/gutenberg_books/valid.txt" --build-dict --dest "$PREPARED/text"
}

text() {
  text_data
  once text-small d2v train tiny/text_pretraining task.data="$PREPARED/text" platform.num_workers=2 \
    optimization.max_update="$(updates 600)" model.ema_anneal_end_step="$(updates 300)" \
    optimizer.groups.default.lr_scheduler.warmup_updates="$(warmup 60)" checkpoint.save_interval_updates=50 \
    platform.run_name=text-small platform.register_as=data2vec2-text-small platform.alias=champion
  report text-small
  local parent=(task.data="$DATA/glue" model.model_path=models:/data2vec2-text-small@champion)
  sweep small-glue small_text 120 "${parent[@]}"
  # RTE's pairs of paragraphs cost several times as much an update.
  sweep small-rte small_text 60 "${parent[@]}" 'grid.task=[rte]' max_updates=60
}

# Pieces of the data's own, sentences of GLUE beside the books, and a recipe without what limits the lane text.
words_data() {
  local place=$PREPARED/words
  [ -f "$place/order/CoLA/dev.tsv" ] || word_material "$DATA" "$place"
  [ -f "$place/text/valid.idx" ] || d2v prepare text --train "$place/train.txt" --valid "$DATA/text/gutenberg_books/valid.txt" \
    --build-dict --encoder-json "$place/encoder.json" --vocab-bpe "$place/vocab.bpe" --dest "$place/text"
}

words() {
  words_data
  local place=$PREPARED/words probe
  once words d2v train tiny/text_pretraining_alibi task.data="$place/text" platform.num_workers=0 \
    optimization.max_update="$(updates 10000)" optimizer.groups.default.lr_scheduler.warmup_updates="$(warmup 100)" \
    model.ema_anneal_end_step="$(updates 500)" \
    platform.run_name=words platform.register_as=data2vec2-words platform.alias=champion
  report words
  for probe in classes sst-2; do
    d2v probe "$place/probes/$probe" --model models:/data2vec2-words@champion --layer 0 --random-weights 3 |
      tee "$WORK/tables/words-$probe.txt"
  done
  sweep words-order small_text 300 task.data="$place/order" model.model_path=models:/data2vec2-words@champion \
    'grid.task=[cola]' 'grid.lr=[5.0e-4,1.0e-3]' max_updates=300 fixed.dataset.validate_interval_updates=100
}

# word_material DATA TO: text of books and of GLUE's training sentences, 4000 byte-level pieces of it (the development
# packages have tokenizers), and probes: the class of words in sentences of a held-out book, by the lexicon that TextBlob ships,
# where no word that is judged is among those that teach; classes of SST-2; and a task in CoLA's layout: does a sentence of
# that book stand as it was written, or were all its words but the first and the last shuffled?
word_material() {
  mkdir -p "$2/probes"
  [ -f "$2/textblob/en/en-lexicon.txt" ] || .venv/bin/python -m pip install --quiet --no-deps --target "$2" textblob==0.20.1
  .venv/bin/python - "$1" "$2" <<'PYTHON'
import collections
import random
import re
import sys
from pathlib import Path

from tokenizers import ByteLevelBPETokenizer

data, place = map(Path, sys.argv[1:])
COLUMNS = {
    "SST-2": ("sentence",), "CoLA": None, "MRPC": ("#1 String", "#2 String"), "QNLI": ("question", "sentence"),
    "RTE": ("sentence1", "sentence2"), "STS-B": ("sentence1", "sentence2"), "QQP": ("question1", "question2"),
    "MNLI": ("sentence1", "sentence2"),
}  # fmt: skip
CLASSES = {
    "NN": "noun", "NNS": "plural noun", "JJ": "adjective", "RB": "adverb", "VB": "verb", "VBD": "past tense",
    "VBG": "-ing form", "VBN": "participle",
}  # fmt: skip


def rows(task: str, split: str) -> list[list[str]]:
    return [line.rstrip("\n").split("\t") for line in (data / "glue" / task / f"{split}.tsv").open(encoding="utf-8")]


def write(name: str, side: str, lines: list[str]) -> None:
    folder = place / "probes" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{side}.tsv").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


sentences = []
for task, names in COLUMNS.items():
    table = rows(task, "train")
    at = [3] if names is None else [[cell.lstrip("\ufeff") for cell in table[0]].index(name) for name in names]
    sentences += [row[i].strip() for row in table[names is not None :] if len(row) > max(at) for i in at]
books = (data / "text/gutenberg_books/train.txt").read_text(encoding="utf-8")
text = place / "train.txt"
text.write_text(books + "\n\n" + "\n\n".join(sentences), encoding="utf-8")

pieces = ByteLevelBPETokenizer()
pieces.train([str(text)], vocab_size=4000, min_frequency=2)
for made, name in zip(pieces.save_model(str(place)), ("encoder.json", "vocab.bpe"), strict=True):
    Path(made).rename(place / name)

entries = [line.split() for line in (place / "textblob/en/en-lexicon.txt").open(encoding="utf-8")]
classes = {entry[0]: CLASSES[entry[1]] for entry in entries if len(entry) == 2 and entry[1] in CLASSES}
held_out = (data / "text/gutenberg_books/valid.txt").read_text(encoding="utf-8")
sentences = [s.split() for line in held_out.splitlines() for s in re.split(r"(?<=[.!?]) ", line)]
random.Random(1).shuffle(sentences)
places = collections.defaultdict(list)  # of each word three
for words in sentences:
    for number, word in enumerate(words, start=1):
        if 8 <= len(words) <= 30 and word in classes and len(word) > 2 and len(places[word]) < 3:
            places[word].append(f"{classes[word]}\t{' '.join(words)}\t{number}")
found = sorted(word for word in places if places[word])
random.Random(1).shuffle(found)
third = len(found) // 3
write("classes", "valid", [line for word in found[:third] for line in places[word]])
write("classes", "train", [line for word in found[third:] for line in places[word]])
rng, ordered = random.Random(1), []
for number, words in enumerate([words for words in sentences if 8 <= len(words) <= 24][:4000]):
    inner = words[1:-1]
    if number % 2:
        rng.shuffle(inner)
    ordered.append(f"book\t{1 - number % 2}\t\t{' '.join([words[0], *inner, words[-1]])}\n")
(place / "order/CoLA").mkdir(parents=True, exist_ok=True)
(place / "order/CoLA/train.tsv").write_text("".join(ordered[1000:]), encoding="utf-8")
judged = {"0": "negative", "1": "positive"}
taught = rows("SST-2", "train")[1:]
random.Random(1).shuffle(taught)
write("sst-2", "train", [f"{judged[row[1]]}\t{row[0].strip()}" for row in taught[:4000]])
write("sst-2", "valid", [f"{judged[row[1]]}\t{row[0].strip()}" for row in rows("SST-2", "dev")[1:]])
(place / "order/CoLA/dev.tsv").write_text("".join(ordered[:1000]), encoding="utf-8")
PYTHON
}

images_data() {
  local sets=$DATA/images tree=$PREPARED/images
  mkdir -p "$tree/train"
  # Pretraining reads the images of two sets; probes and fine-tuning the labelled clothes alone.
  ln -sfn "$sets"/clothing10_160/train/* "$sets"/imagenet_sample_160/train/* "$tree/train/"
  ln -sfn "$sets/clothing10_160/train" "$tree/bank"
  ln -sfn "$sets/clothing10_160/val" "$tree/val"
}
PROBED=(dataset.disable_validation=false dataset.valid_subset=val dataset.validate_interval=1000000)

images() {
  images_data
  local tree=$PREPARED/images
  image_model image-small-v2 tiny/image_pretraining 9000 "$tree" optimizer.groups.default.lr_scheduler.warmup_updates="$(warmup 200)" \
    model.ema_anneal_end_step="$(updates 3000)" task.probe_bank=bank
  image_model image-small-v1 tiny/image_pretraining_v1 1200 "$tree" lr_scheduler.warmup_updates="$(warmup 200)" task.probe_bank=bank
  image_model image-small-mae tiny/image_pretraining_mae 500 "$DATA/images/cifar10_subset" task.probe_bank=train
  local generation
  for generation in 2 1; do
    sweep image-small-v$generation-tuned small_images 300 task.data="$DATA/images/clothing10_160" \
      "grid.task=[image_finetuning$([ $generation = 2 ] || echo _v1)]" model.model_path=models:/image-small-v$generation@champion
  done
}

# image_model NAME RECIPE UPDATES DATA WORDS...: pretrained, probed as it is trained and beside three random weights.
image_model() {
  local name=$1 recipe=$2 length=$3 data=$4 bank=train
  shift 4
  [ -d "$data/bank" ] && bank=bank
  once "$name" d2v train "$recipe" task.data="$data" platform.num_workers=0 optimization.max_update="$(updates "$length")" \
    "${PROBED[@]}" dataset.validate_interval_updates="$(updates $((length / 6)))" \
    checkpoint.save_interval_updates="$(updates $((length / 6)))" platform.run_name="$name" \
    platform.register_as="$name" platform.alias=champion "$@"
  report "$name"
  d2v probe "$data" --bank $bank --subset val --model "models:/$name@champion" --random-weights 3 | tee "$WORK/tables/$name-probe.txt"
}

speech_data() {
  local sets=$DATA/speech ready=$PREPARED/speech set split order
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
  [ -f "$ready/pretrain/train.tsv" ] && return
  mkdir -p "$ready/recordings"
  ln -sfn "$sets/ljspeech_mini/train" "$ready/recordings/ljspeech_mini"
  ln -sfn "$sets/asterisk_prompts_en/train" "$ready/recordings/asterisk_prompts_en"
  strings_of_digits "$sets/fsdd/train" "$ready/recordings/fsdd"
  d2v prepare audio-manifest "$ready/recordings" --dest "$ready/pretrain" --valid-percent 0
}

speech() {
  speech_data
  local ready=$PREPARED/speech set weights from model=models:/data2vec2-speech-small@champion
  once speech-small d2v train tiny/audio_pretraining task.data="$ready/pretrain" platform.num_workers=0 \
    optimization.max_update="$(updates 2400)" lr_scheduler.warmup_updates="$(warmup 200)" \
    model.ema_anneal_end_step="$(updates 2400)" checkpoint.save_interval_updates=200 \
    platform.run_name=speech-small platform.register_as=data2vec2-speech-small platform.alias=champion
  report speech-small
  for weights in pretrained random; do  # two sweeps: the best model of each is decoded
    from=(model.w2v_path=$model model.no_pretrained_weights="$([ $weights = random ] && echo true || echo false)")
    for set in fsdd asterisk_prompts_en; do
      # Whole sentences leave CTC's phase of blanks later than single words.
      [ $set = fsdd ] && length=1200 || length=3000
      sweep $set-$weights small_speech $length "grid.task=[$set]" task.data="$ready" "${from[@]}" \
        optimization.max_update=$length dataset.validate_interval_updates=$((length / 4)) \
        evaluate.lexicon="$ready/$set/lm/lexicon.txt" evaluate.lmpath="$ready/$set/lm/lm.arpa"
    done
    sweep minutes-$weights minutes 400 task.data="$ready/fsdd-minutes" "${from[@]}" 'grid.seed=[1,2,3]' \
      evaluate.lexicon="$ready/fsdd/lm/lexicon.txt" evaluate.lmpath="$ready/fsdd/lm/lm.arpa" \
      register.name=null register.alias=null
  done
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

speed() {
  local what
  for what in text vision speech overhead scale; do
    [ -s "$WORK/tables/speed-$what.txt" ] || {
      .venv/bin/python experiments/benchmark.py $what > "$WORK/tables/speed-$what.part"
      mv "$WORK/tables/speed-$what".{part,txt}
    }
  done
}

# The recipes as they are, for at most three CPU-minutes each; their schedules are those of the whole run.
reference() {
  text_data
  images_data
  speech_data
  local recipe words
  for recipe in {image,text,audio}_pretraining{,_v1} image_pretraining_mae; do
    words=(task.data="$PREPARED/images" "${PROBED[@]}" task.probe_bank=bank dataset.validate_interval_updates=100)
    [[ $recipe = text* ]] && words=(task.data="$PREPARED/text")
    [[ $recipe = audio* ]] && words=(task.data="$PREPARED/speech/pretrain")
    once reference-$recipe d2v train tiny/$recipe "${words[@]}" optimization.stop_cpu_minutes="$(awk -v s="$SHARE" 'BEGIN { print 3 * s }')" \
      platform.num_workers=0 platform.run_name=reference-$recipe
    report reference-$recipe --write-reference "$REFERENCE/tiny/$recipe.csv"
  done
}
# What probes frozen features of speech, the digits of fsdd, and recordings to validate on, whose loss nobody looks at.
probe_data() {
  speech_data
  mkdir -p "$PREPARED/digits"
  cp "$PREPARED/speech/fsdd"/{train,valid}.{tsv,wrd} "$PREPARED/digits/"
  [ -f "$PREPARED/speech/pretrain/valid.tsv" ] || cp "$PREPARED/speech/asterisk_prompts_en/valid.tsv" "$PREPARED/speech/pretrain/"
}
TEXT_PROBE=(task.data="$PREPARED/words/text" task.probe_data="$PREPARED/words/probes/classes" task.probe_layer=0)
SPEECH_PROBE=(task.data="$PREPARED/speech/pretrain" task.probe_data="$PREPARED/digits" dataset.num_workers=0)
minutes() { awk -v n="$1" -v share="$SHARE" 'BEGIN { print n * share }'; }

# One run a method: the rate stays at its peak, so that what it has reached after 5, 15 or 45 minutes is what a run of that
# length would have reached.
quality() {
  words_data
  images_data
  probe_data
  local images=(task.data="$PREPARED/images" task.probe_bank=bank dataset.valid_subset=val) slow=model.ema_anneal_end_step=3000
  local plain=lr_scheduler.warmup_updates=200 groups=optimizer.groups
  lasting image-v2 tiny/image_pretraining 250 "${images[@]}" $groups.default.$plain $slow
  lasting image-v1 tiny/image_pretraining_v1 100 "${images[@]}" $plain
  lasting image-lightly experiments/lightly_mae/image_pretraining.yaml 250 "${images[@]}" \
    $groups.{with,no}_decay.$plain
  lasting speech-v2 tiny/audio_pretraining 250 "${SPEECH_PROBE[@]}" $plain $slow
  lasting speech-v2-8-clones tiny/audio_pretraining 250 "${SPEECH_PROBE[@]}" $plain $slow model.clone_batch=8
  lasting speech-v1 tiny/audio_pretraining_v1 250 "${SPEECH_PROBE[@]}" $plain $slow
  lasting text-v2 tiny/text_pretraining_alibi 500 "${TEXT_PROBE[@]}"
  # The network of text_pretraining_alibi; without positions v1 is worse still.
  local small=model.transformer.encoder
  lasting text-v1 tiny/text_pretraining_v1 500 "${TEXT_PROBE[@]}" task.tokens_per_sample=64 dataset.batch_size=16 \
    distributed_training.distributed_world_size=1 'optimization.lr=[2.0e-3]' lr_scheduler.warmup_updates=100 \
    $small.layers=2 $small.embed_dim=128 $small.ffn_embed_dim=512 model.transformer.{attention_,}dropout=0 \
    model.average_top_k_layers=2 model.ema_anneal_end_step=500
  over_cpu image val quality-image-{v2,v1,lightly}
  over_cpu speech valid quality-speech-{v2,v2-8-clones,v1}
  over_cpu text valid quality-text-{v2,v1}
  budgets "$WORK"/tables/quality-{image,speech,text}.csv | tee "$WORK/tables/quality.md"
}

# over_cpu NAME SUBSET RUNS...: their probes of that subset in one plot.
over_cpu() {
  local name=quality-$1 subset=$2
  shift 2
  d2v report "$@" --over cpu --only "$subset-knn" --only "$subset-linear_probe" --out "$WORK/reports/$name" > /dev/null
  cp "$WORK/reports/$name/report.png" "$WORK/figures/$name.png"
  cp "$WORK/reports/$name/curves.csv" "$WORK/tables/$name.csv"
}

# budgets CURVES...: what the probes of the last third of each budget say, mean (least..most).
budgets() {
  .venv/bin/python - "$@" <<'PYTHON'
import sys
from pathlib import Path

import numpy as np

from d2v_platform.reports.run_history import read_curves

BUDGETS = (2, 5, 15, 45, 90)  # CPU-minutes
print("| run | probe |", " | ".join(f"{budget} min" for budget in BUDGETS), "|")
print("|---|---|" + "---:|" * len(BUDGETS))
for history in [history for path in sys.argv[1:] for history in read_curves(Path(path))]:
    for probe in ("linear_probe", "knn"):
        curve = next(curve for name, curve in history.curves.items() if name.endswith(f"/{probe}"))
        minutes, cells = history.cpu_minutes(curve.updates), []
        for budget in BUDGETS:
            found = curve.values[(minutes > budget * 2 / 3) & (minutes < budget + 0.3)]
            there = len(found) and minutes[-1] > budget - 0.3
            cells.append(f"{np.mean(found):.1f} ({min(found):.1f}..{max(found):.1f})" if there else "")
        print(f"| {history.name} | {probe} |", " | ".join(cells), "|")
PYTHON
}

# lasting NAME RECIPE INTERVAL WORDS...: MINUTES of CPU time, probed every INTERVAL updates.
lasting() {
  local name=quality-$1 recipe=$2 interval=$3
  shift 3
  once "$name-$MINUTES" d2v train "$recipe" "$@" optimization.stop_cpu_minutes="$(minutes "$MINUTES")" \
    optimization.max_update=1000000 common.log_interval=10 dataset.disable_validation=false dataset.validate_interval=1000000 \
    dataset.validate_interval_updates="$(updates "$interval")" checkpoint.save_interval=1000000 checkpoint.save_interval_updates=0 \
    checkpoint.save_interval_minutes=10 platform.num_workers=0 platform.run_name="$name"
}

clones() {
  words_data
  images_data
  probe_data
  local cut=(fixed.optimization.stop_cpu_minutes="$(minutes 10)" fixed.dataset.validate_interval_updates="$(updates 500)")
  sweep clones-images clones_images 1000000 task.data="$PREPARED/images" "${cut[@]}"
  sweep clones-speech clones_speech 1000000 "${SPEECH_PROBE[@]}" "${cut[@]}" 'grid.seed=[1,2]'
  sweep clones-text clones_text 1000000 "${TEXT_PROBE[@]}" "${cut[@]}"
  local what
  for what in images speech text; do
    report clones-$what --over cpu
  done
}

REFERENCE=experiments/results/reference
[ "$SHARE" = 1 ] || REFERENCE=$WORK/reference  # a trial run is no reference

for lane in "$@"; do
  "$lane"
  echo "$lane: tables, figures and reports in $WORK"
done
