#!/usr/bin/env bash
# The tables of all editors, of the README and of FINDINGS.md. Each command goes on where it was stopped; together
# they take many hours.
#
#   benchmarks/compare.sh smollm2 5 DATA [runs/compare]
#
# The committed records are of the same commands, but several of them side by side in folders of their own
# (MODEL-many, -many-beside, -many-emmet ...), which benchmarks/differences.py takes two at a time.
#
# Arguments: the model, the layer for editors that benchmarks/editors-MODEL.toml tells none, the folder of the files
# below (the published ones, or subsets of them), and where the comparisons go.
set -euo pipefail
model=$1 layer=$2 data=$3 out=${4:-runs/compare}
locality=$data/portability.counterfact_locality.json.gz replaced=$data/portability.counterfact_subject_replace.json.gz
one_hop=$data/portability.zsre_onehop.json.gz reversed=$data/portability.zsre_inverse_relation.json.gz
counterfact_train=$data/counterfact_flat.train.json.gz zsre_train=$data/zsre.train.json.gz
zsre=$data/zsre.eval.dev.json.gz flat=$data/counterfact_flat.edit.json.gz hops=$data/mquake.cf3k_qa.json.gz piqa=$data/piqa.valid.json.gz

without=()
for name in counterfact.dev zsre.eval.dev portability.counterfact_{locality,onehop,subject_replace} \
  portability.zsre_{onehop,inverse_relation,subject_replace}
do without+=(--without "$data/$name.json.gz"); done
editing train --editor serac --data "$counterfact_train" --data "$zsre_train" "${without[@]}" --model "$model" \
  --steps 2000 --out runs/train/serac --quiet
steps=500 hop_cases=15
if [ "$model" = gemma-3-270m ]; then steps=300 hop_cases=10; fi  # which is slower
for editor in mend ke
do editing train --editor "$editor" --data "$zsre_train" "${without[@]}" --model "$model" \
  --steps "$steps" --out "runs/train/$model-$editor" --quiet
done

compare() { # FOLDER FILE EDITORS [OPTION ...]
  editing compare --model "$model" --layer "$layer" --settings "benchmarks/editors-$model.toml" --out "$out/$1" \
    --data "$2" --editors "$3" --evenly $costs --threads 1 --quiet "${@:4}"
}
costs=--no-costs

single() { # FILE EDITORS N [OPTION ...]
  compare "$model" "$1" "$2" --n "$3" --choices "$piqa" --choices-a-case 1 --text 1 --no-free --no-kl "${@:4}"
}

many() { # FOLDER EDITORS [OPTION ...]
  compare "$model-$1" "$zsre" "$2" --benchmark zsre --no-free --no-kl "${@:3}"
}

beside=serac,memprompt,grace,t-patcher,calinet,ike
weights=r-rome,rome,p-rome,memit,emmet,alphaedit,pmet,mend,ke,kn,ft,ft-l,ft-m
single "$locality" "$beside,$weights" 100
single "$one_hop" "$beside,$weights" 100 --benchmark zsre-survey
compare "$model-portability" "$replaced" "$beside,$weights" --n 70 --no-free --no-kl
compare "$model-portability" "$reversed" "$beside,$weights" --n 70 --no-free --no-kl --benchmark zsre-survey
counterfact=$data/counterfact.dev.json.gz
compare "$model-counterfact" "$counterfact" r-rome,rome,emmet --n 100 --no-free --no-kl --text 1
compare "$model-counterfact" "$counterfact" memit --n 100 --batch 100 --protocols single,batch --no-free --no-kl --text 1

many sequence serac,memprompt,grace,t-patcher,r-rome,rome,memit,alphaedit,mend,ke,ft-l \
  --protocols sequential --n 300 --checkpoints 1,10,30,100,300
batched=(memit,alphaedit,emmet,pmet --protocols batch --n 100 --batch 10,100 --no-free --no-kl)
compare "$model-counterfact-batch" "$locality" "${batched[@]}" --text 1
compare "$model-batch" "$one_hop" "${batched[@]}" --benchmark zsre-survey
many many memit,emmet,alphaedit,grace,serac --protocols batch --n 1000 --batch 10,100,500,1000
many many-pmet pmet --protocols batch --n 1000 --batch 10,100,500
many many-learned mend,ke --protocols batch --n 1000 --batch 10,100
many many-rest ft-m,ft,ft-l,calinet,ike,t-patcher,kn --protocols batch --n 1000 --batch 10,100
many sequence-rest ft-m,emmet,calinet,ike,ft,pmet,kn,p-rome --protocols sequential --n 300 --checkpoints 1,10,30,100,300
compare "$model-together" "$one_hop" mello,memprompt,serac,grace --data "$flat" --benchmark zsre-survey --no-free --no-kl \
  --protocols batch --n 100 --batch 100 --set mello.max_rounds=3 --set mello.new_tokens=96
compare "$model-hops" "$hops" mello,ike --n "$hop_cases"

# Last, with nothing else on the machine: what an edit costs. The scores are finished and are not made again.
costs=--cold single "$locality" "$beside,$weights" 100
