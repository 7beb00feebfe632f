"""Tests a model: evaluate.py MODEL TEST METRICS."""

import json
import sys

import joblib
import numpy as np
from sklearn.metrics import accuracy_score, roc_auc_score

model_path, test, metrics = sys.argv[1:]
model = joblib.load(model_path)
table = np.loadtxt(test, delimiter=",", skiprows=1)
x, y = table[:, :-1], table[:, -1].astype(int)
result = {
    "accuracy": float(accuracy_score(y, model.predict(x))),
    "auc": float(roc_auc_score(y, model.predict_proba(x)[:, 1])),
    "rows": len(y),
}
with open(metrics, "w", encoding="utf-8") as f:
    json.dump(result, f, indent=2, sort_keys=True)
    f.write("\n")
print(result)
