"""Writes the raw table that scikit-learn ships as a CSV file with a header."""

import csv
import sys

from sklearn.datasets import load_breast_cancer

data = load_breast_cancer()
with open(sys.argv[1], "w", newline="", encoding="utf-8") as f:
    w = csv.writer(f, lineterminator="\n")
    w.writerow([*data.feature_names, "benign"])
    for row, label in zip(data.data.tolist(), data.target.tolist()):
        w.writerow([*row, label])
print(f"{len(data.target)} rows")
