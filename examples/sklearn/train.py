"""Trains a logistic regression: train.py TRAIN MODEL --c C."""

import argparse

import joblib
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

p = argparse.ArgumentParser()
p.add_argument("train")
p.add_argument("model")
p.add_argument("--c", type=float, default=1.0)
args = p.parse_args()

table = np.loadtxt(args.train, delimiter=",", skiprows=1)
model = make_pipeline(StandardScaler(), LogisticRegression(C=args.c, max_iter=1000))
model.fit(table[:, :-1], table[:, -1].astype(int))
joblib.dump(model, args.model)
print(f"trained on {len(table)} rows")
