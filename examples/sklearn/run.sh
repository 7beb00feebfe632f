#!/usr/bin/env bash
# Runs the pipeline with every stage recorded, proves the model, and shows that another model does not pass for it.
# Wants ledgerctl and a python with requirements.txt on the PATH. Works in a new directory, ./work or the one that is named.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
work="${1:-work}"
if [[ -e $work ]]; then
  echo "$work exists; remove it or name another directory" >&2
  exit 64
fi
mkdir -p "$work/data"
cd "$work"
# A ledger of its own, whatever the environment says.
export LEDGER=./.ledger
unset LEDGER_RUN_ID LEDGER_LOG LEDGER_TRUST

ledgerctl run --job ingest \
  --input 'https://doi.org/10.24432/C5DW2B,purpose=raw-data' --input "$here/ingest.py,purpose=source-code" \
  --output data/raw.csv,purpose=raw-data,name=wdbc \
  -- python "$here/ingest.py" data/raw.csv

ledgerctl run --job split --param seed=42 \
  --input data/raw.csv,purpose=raw-data --input "$here/split.py,purpose=source-code" \
  --output data/train.csv,purpose=training-data --output data/test.csv,purpose=test-data \
  -- python "$here/split.py" data/raw.csv data/train.csv data/test.csv 42

ledgerctl run --job train --param C=0.5 \
  --input data/train.csv,purpose=training-data --input "$here/train.py,purpose=source-code" \
  --output model.joblib,kind=model,name=wdbc-sklearn,version=1 \
  -- python "$here/train.py" data/train.csv model.joblib --c 0.5

ledgerctl run --job evaluate --metrics-file metrics.json \
  --input model.joblib,kind=model --input data/test.csv,purpose=test-data --input "$here/evaluate.py,purpose=source-code" \
  --output metrics.json,purpose=report \
  -- python "$here/evaluate.py" model.joblib data/test.csv metrics.json

echo
ledgerctl trace ./metrics.json

echo
ledgerctl key show --policy >ledger.policy
ledgerctl prove ./model.joblib --out model.receipt
ledgerctl verify model.joblib data/train.csv --receipt model.receipt --trust ledger.policy --require kind=run,job=train,outcome=complete

# One more training row, and the receipt speaks of other data.
cp data/train.csv other.csv
tail -n 1 data/train.csv >>other.csv
code=0
ledgerctl verify other.csv --receipt model.receipt --trust ledger.policy || code=$?
if [[ $code -ne 1 ]]; then
  echo "other training data must be NOT VERIFIED (1), the exit code was $code" >&2
  exit 1
fi
