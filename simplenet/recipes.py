"""Combinations of options under one name (`--recipe`)."""

from typing import Any

# For an honest last epoch. What each option does and where it comes from is said where it is computed: whitening,
# FeatureNoise, Trainer and MovingAverage. benchmarks/accuracy.py measures them apart and together.
STABLE: dict[str, Any] = {
    "meta_epochs": 20,
    "gan_epochs": 1,
    "pre_proj": 1,
    "whiten": 0.1,
    "adaptor_lr": 0.0015,
    "dsc_layers": 2,
    "dsc_hidden": 512,
    "dsc_margin": 0.5,
    "dsc_lr": 0.001,
    "ensemble": 8,
    "noise_std": 1.0,  # of whitened features
    "mix_noise": 8,
    "difference_noise": 0.5,
    "ema": 0.99,
    "warm_up_cosine": True,
    "score_top_k": 8,
    "align_maps": True,
}
# For parts in changing light and for sharper maps; chosen on solar cells, drawn parts and two classes of assembly.
MEMORY: dict[str, Any] = {
    **STABLE,
    "pretrain_embed_dimension": 256,  # with the paper's 1,536 all that follows takes twice the backbone's time
    "target_embed_dimension": 256,
    "memory": 1000,
    "bank_size": 4000,
    "distance": 0.25,
    "ensemble": 3,
    "noise_std": 0.5,
    "match_light": "gain",
    "brightness": 0.3,  # of dataset: matching does not bring back what is brighter than white, so training shows that
    "draw_once": True,
}
RECIPES = {"stable": STABLE, "memory": MEMORY}
