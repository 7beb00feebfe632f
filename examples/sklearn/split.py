"""Splits a table into training and test rows: split.py RAW TRAIN TEST SEED."""

import sys

import numpy as np
from sklearn.model_selection import train_test_split

raw, train, test, seed = sys.argv[1:]
with open(raw, encoding="utf-8") as f:
    header, *rows = f.read().splitlines()
labels = np.array([int(row.rsplit(",", 1)[1]) for row in rows])
parts = train_test_split(rows, test_size=0.2, random_state=int(seed), stratify=labels)
for path, part in zip((train, test), parts):
    with open(path, "w", newline="", encoding="utf-8") as f:
        f.write("\n".join([header, *part]) + "\n")
print(f"{len(parts[0])} training rows, {len(parts[1])} test rows")
