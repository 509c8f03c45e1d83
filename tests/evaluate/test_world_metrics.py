import numpy as np
import polars as pl
import pytest

from egoscale.evaluate.world_metrics import ridge_r2, true_targets


def test_a_linear_relation_is_found_and_noise_is_not():
    rng = np.random.default_rng(0)
    x, held = rng.normal(size=(400, 6)), rng.normal(size=(200, 6))
    weights = rng.normal(size=(6, 2))
    assert ridge_r2(x, x @ weights, held, held @ weights) > 0.99
    assert ridge_r2(x, rng.normal(size=(400, 2)), held, rng.normal(size=(200, 2))) < 0.05


def test_targets_are_found_beside_the_video_and_are_absent_for_real_video(tmp_path):
    videos = tmp_path / "videos" / "rec0"
    videos.mkdir(parents=True)
    manifest = pl.DataFrame({"clip_id": ["film/take0"], "path": [str(videos / "take0.mp4")]})
    assert true_targets(manifest) == {}
    pl.DataFrame(
        {"take_id": ["take0"] * 2, "frame": [1, 0], "target_x_m": [0.2, 0.1], "target_y_m": [0.4, 0.3]}
    ).write_parquet(tmp_path / "truth.parquet")
    assert true_targets(manifest)["film/take0"] == pytest.approx(np.array([[0.1, 0.3], [0.2, 0.4]]))
