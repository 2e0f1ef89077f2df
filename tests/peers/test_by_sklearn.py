"""Reports and scores beside scikit-learn's: calibration, precision, graphs, whitening."""

import numpy as np
import pytest
import torch
from sklearn import metrics
from sklearn.calibration import calibration_curve
from sklearn.decomposition import PCA
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.neighbors import kneighbors_graph
from torch import Tensor

from limbeck.doctor.numbers import confusion
from limbeck.runs.measures import BINS, of_classes
from limbeck.vision.l2d.scores import f1_scores, mean_average_precision
from limbeck.vision.trg import graph
from limbeck.vision.vkd import whitened

pytestmark = pytest.mark.xdist_group("by sklearn")
seeds = pytest.mark.parametrize("seed", range(3))


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@seeds
@pytest.mark.parametrize("classes", [2, 6])
def test_calibration(seed: int, classes: int) -> None:
    z, y = 2 * draw(seed, 400, classes), torch.arange(400) % classes
    z[torch.arange(0, 400, 2), y[::2]] += 2
    told = of_classes(z, y)
    p = z.softmax(1).numpy()
    right, sure = (p.argmax(1) == y.numpy()), p.max(1)
    share, mean = calibration_curve(right, sure, n_bins=BINS, strategy="uniform")
    ours = np.array(told["reliability"])
    np.testing.assert_allclose(ours[:, 0], mean, rtol=1e-12)
    np.testing.assert_allclose(ours[:, 1], share, rtol=1e-12)
    counts = np.histogram(sure, BINS, (0, 1))[0]
    assert ours[:, 2].tolist() == counts[counts > 0].tolist()
    apart = np.abs(share - mean)
    assert told["ece"] == pytest.approx((counts[counts > 0] * apart).sum() / 400, rel=1e-12)
    assert told["ece"] > 0.01


@seeds
def test_nll_and_each_class(seed: int) -> None:
    z, y = draw(seed, 60, 4), torch.arange(60) % 3  # of the fourth class there is no sample
    told = of_classes(z, y)
    p = z.softmax(1).numpy()
    assert told["nll"] == pytest.approx(metrics.log_loss(y, p, labels=range(4)), rel=1e-9)
    recall = metrics.recall_score(y, p.argmax(1), labels=range(3), average=None)
    assert told["per_class"][:3] == pytest.approx(recall.tolist())
    assert told["per_class"][3] is None
    counts = confusion(z.argmax(1), y, 4)
    assert counts.T.tolist() == metrics.confusion_matrix(y, p.argmax(1), labels=range(4)).tolist()


@seeds
@pytest.mark.parametrize("ties", [False, True])
def test_mean_average_precision_and_f1(seed: int, ties: bool) -> None:
    z, y = draw(seed, 40, 5), (draw(seed + 50, 40, 5) > 0.5).long()
    z = z.round() if ties else z
    mean = metrics.average_precision_score(y, z, average="macro")
    assert mean_average_precision(z, y) == pytest.approx(mean, rel=1e-9)
    said = (z > 0).numpy()
    of1, cf1 = (metrics.f1_score(y, said, average=how) for how in ("micro", "macro"))
    assert f1_scores(z, y) == pytest.approx({"OF1": of1, "CF1": cf1})


def test_apart_average_precision_leaves_out_labels_that_no_sample_has() -> None:
    z, y = draw(1, 40, 5), (draw(51, 40, 5) > 0.5).long()
    y[:, 2] = 0
    with pytest.warns(UserWarning, match="No positive class found"):
        theirs = metrics.average_precision_score(y, z, average="macro")  # which counts it 0
    assert mean_average_precision(z, y) == pytest.approx(theirs * 5 / 4, rel=1e-9)


@seeds
def test_trg_graph(seed: int) -> None:
    x = draw(seed, 14, 3)
    near = kneighbors_graph(x.numpy(), 4, mode="connectivity", include_self=False).toarray()
    theirs = (near.T + np.eye(14)) * rbf_kernel(x.numpy(), gamma=1 / (2 * 1.7))
    np.testing.assert_allclose(graph(x, 4, sigma=1.7).numpy(), theirs, rtol=1e-9, atol=1e-12)


def test_apart_vkd_whitens_without_turning_and_by_all_samples() -> None:
    z = draw(1, 30, 4) @ draw(2, 4, 4) + 3
    pca = PCA(whiten=True).fit(z.numpy())
    turned = pca.transform(z.numpy())
    ours = whitened(z).numpy()
    np.testing.assert_allclose(ours, np.sqrt(30 / 29) * turned @ pca.components_, rtol=1e-8)
    np.testing.assert_allclose(np.cov(turned.T), np.eye(4), atol=1e-9)
    np.testing.assert_allclose(np.cov(ours.T, bias=True), np.eye(4), atol=1e-9)
    assert np.abs(ours - turned).max() > 0.5
