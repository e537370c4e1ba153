"""Images and texts in one Hamming space: networks, what they learn by, engines, and surrogates that learn from answers.

`networks` and the losses `DCMH` and `SSAH` make an `Engine`; `oracle` and `over_http` are what an attacker sees of it;
`triplets`, `surrogates` and `ranked_pairs` are what AACH and EQB2A make of that. The attacks are `attacks.cross_modal`,
and `controls` is what they are compared with.
"""

from robret_lib.cross_modal.black_box import BlackBox
from robret_lib.cross_modal.center_guided import CenterGuidedPairs
from robret_lib.cross_modal.controls import commonest_bits, equal_bits, random_signs, random_words
from robret_lib.cross_modal.dcmh import DCMH
from robret_lib.cross_modal.engine import Asked, Engine, Kind
from robret_lib.cross_modal.networks import (
    ImageTextModel,
    NeighboringWords,
    Semantic,
    semantic_image_model,
    semantic_text_model,
    text_model,
    with_small_head,
)
from robret_lib.cross_modal.objective import ImagesAndTexts, Pairs
from robret_lib.cross_modal.oracle import Answers, CodeOracle, encoder
from robret_lib.cross_modal.over_http import EngineError, encoder_at, server, serving
from robret_lib.cross_modal.ranked_pairs import RankedPairs
from robret_lib.cross_modal.ssah import SSAH
from robret_lib.cross_modal.surrogates import OfAnswers, SurrogateTriplets, learned
from robret_lib.cross_modal.triplets import Triplets, cross_modal_triplets

__all__ = [
    "DCMH",
    "SSAH",
    "Answers",
    "Asked",
    "BlackBox",
    "CenterGuidedPairs",
    "CodeOracle",
    "Engine",
    "EngineError",
    "ImageTextModel",
    "ImagesAndTexts",
    "Kind",
    "NeighboringWords",
    "OfAnswers",
    "Pairs",
    "RankedPairs",
    "Semantic",
    "SurrogateTriplets",
    "Triplets",
    "commonest_bits",
    "cross_modal_triplets",
    "encoder",
    "encoder_at",
    "equal_bits",
    "learned",
    "random_signs",
    "random_words",
    "semantic_image_model",
    "semantic_text_model",
    "server",
    "serving",
    "text_model",
    "with_small_head",
]
