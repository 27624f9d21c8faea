"""Figures for the tests of FID, KID and the inception score (core/src/metrics), by numpy and scipy.

    pip install numpy==2.4.6 scipy==1.17.1 && python distances.py

The features are formulas, so that the tests make the same ones.
"""

import numpy as np
from scipy.linalg import sqrtm


def waves(images, width, phase, lift):
    i, j = np.meshgrid(np.arange(images, dtype=np.float64), np.arange(width, dtype=np.float64), indexing="ij")
    values = np.sin(0.37 * (i + 1) * (j + 1) + phase * (i + 1)) + lift * j
    return values.astype(np.float32).astype(np.float64)


def fid(a, b):
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = sqrtm(ca @ cb)
    return np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(ca) + np.trace(cb) - 2 * np.trace(root).real


def kid(a, b):
    kernel = lambda x, y: (x @ y.T / x.shape[1] + 1) ** 3
    n, m = len(a), len(b)
    aa, bb, ab = kernel(a, a), kernel(b, b), kernel(a, b)
    within = (aa.sum() - np.trace(aa)) / (n * (n - 1)) + (bb.sum() - np.trace(bb)) / (m * (m - 1))
    return within - 2 * ab.mean()


def kid_of_pairs(a, b):
    """Gretton et al. 2012, equation 4, term by term."""
    kernel = lambda x, y: (x @ y / len(x) + 1) ** 3
    n = len(a)
    h = lambda i, j: kernel(a[i], a[j]) + kernel(b[i], b[j]) - kernel(a[i], b[j]) - kernel(a[j], b[i])
    return sum(h(i, j) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))


def inception(logits, parts):
    scores = []
    for k in range(parts):
        part = logits[k * len(logits) // parts : (k + 1) * len(logits) // parts]
        p = np.exp(part - part.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        scores.append(np.exp(np.mean(np.sum(p * np.log(p / p.mean(0)), axis=1))))
    return np.mean(scores), np.std(scores)


full = waves(40, 6, 0.0, 0.0), waves(50, 6, 0.8, 0.1)
lifted = waves(40, 6, 0.0, 0.0), waves(40, 6, 0.0, 0.25)
small = waves(9, 16, 0.0, 0.0), waves(12, 16, 0.8, 0.1)
for name, (a, b) in [("full rank", full), ("lifted", lifted), ("fewer images than features", small)]:
    print(f"{name}: FID {fid(a, b)!r}, KID {kid(a, b)!r}")
near = waves(40, 6, 0.0, 0.0), waves(40, 6, 0.02, 0.0)
for name, (a, b) in [("near", near), ("lifted", lifted)]:
    print(f"{name}: KID of pairs {float(kid_of_pairs(a, b))!r}, of strangers {float(kid(a, b))!r}")
logits = (np.float32(3) * waves(40, 6, 0.0, 0.0).astype(np.float32)).astype(np.float64)
print("inception score, whole:", inception(logits, 1)[0], "in three parts:", *inception(logits, 3))

# Image::resized (core/src/image/resize.rs), every seventh value; scikit-image 0.26.0.
from skimage.transform import resize

image = (np.arange(36) * 7 % 11 / 10).reshape(4, 3, 3)
for size in [(6, 5), (3, 2)]:
    values = resize(image, size, order=1, mode="edge", anti_aliasing=False).ravel()[::7]
    print("resized to", size, [round(float(v), 7) for v in values])
