"""One method, one small file. Adding a loss is one file here, three lines below and one test file.

A loss file defines a pure function ``<name>_loss`` (student first, teacher second) and its config; the config is called
with the outputs of both nets and the batch. Torch is imported for types only, or inside functions, so that a recipe is
validated without it.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from edgewise.compress.losses.at import AT, at_loss
from edgewise.compress.losses.attention_matrices import AttentionMatrices, attention_matrices_loss
from edgewise.compress.losses.cc import CC, cc_loss
from edgewise.compress.losses.crd import CRD, crd_loss
from edgewise.compress.losses.custom import Custom
from edgewise.compress.losses.cwd import CWD, cwd_loss
from edgewise.compress.losses.dist import DIST, dist_loss
from edgewise.compress.losses.dkd import DKD, dkd_loss
from edgewise.compress.losses.fitnet import FitNet, fitnet_loss
from edgewise.compress.losses.fsp import FSP, fsp_loss
from edgewise.compress.losses.hcl import HCL, hcl_loss
from edgewise.compress.losses.hidden_cosine import HiddenCosine, hidden_cosine_loss
from edgewise.compress.losses.hidden_states import HiddenStates, hidden_states_loss
from edgewise.compress.losses.kd import KD, kd_loss
from edgewise.compress.losses.logit_gram import LogitGram, logit_gram_loss
from edgewise.compress.losses.logit_mse import LogitMSE, logit_mse_loss
from edgewise.compress.losses.masked_feature import MaskedFeature, attention_masked_loss, foreground_masked_loss
from edgewise.compress.losses.mgd import MGD, mgd_loss
from edgewise.compress.losses.mlkd import MLKD, mlkd_loss
from edgewise.compress.losses.multi_label import MultiLabel, multi_label_loss
from edgewise.compress.losses.nkd import NKD, nkd_loss
from edgewise.compress.losses.pkt import PKT, pkt_loss
from edgewise.compress.losses.regression import BoundedRegression, Regression, bounded_regression_loss, regression_loss
from edgewise.compress.losses.reviewkd import ReviewKD, reviewkd_loss
from edgewise.compress.losses.rkd import RKDAngle, RKDDistance, rkd_angle_loss, rkd_distance_loss
from edgewise.compress.losses.simkd import SimKD, simkd_loss
from edgewise.compress.losses.sp import SP, sp_loss
from edgewise.compress.losses.ttm import TTM, WTTM, ttm_loss, wttm_loss
from edgewise.compress.losses.value_relations import ValueRelations, value_relations_loss
from edgewise.compress.losses.vid import VID, vid_loss

_Logits = KD | LogitMSE | DKD | NKD | DIST | MLKD | TTM | WTTM | MultiLabel | Regression | BoundedRegression | LogitGram
_Features = FitNet | AT | HCL | MaskedFeature | ReviewKD | VID | PKT | CWD | MGD | SimKD | CRD
_Relations = RKDDistance | RKDAngle | SP | CC | FSP
_Tokens = HiddenStates | HiddenCosine | AttentionMatrices | ValueRelations

LossConfig = Annotated[_Logits | _Features | _Relations | _Tokens | Custom, Field(discriminator="kind")]

__all__ = [
    "AT",
    "CC",
    "CRD",
    "CWD",
    "DIST",
    "DKD",
    "FSP",
    "HCL",
    "KD",
    "MGD",
    "MLKD",
    "NKD",
    "PKT",
    "SP",
    "TTM",
    "VID",
    "WTTM",
    "AttentionMatrices",
    "BoundedRegression",
    "Custom",
    "FitNet",
    "HiddenCosine",
    "HiddenStates",
    "LogitGram",
    "LogitMSE",
    "LossConfig",
    "MaskedFeature",
    "MultiLabel",
    "RKDAngle",
    "RKDDistance",
    "Regression",
    "ReviewKD",
    "SimKD",
    "ValueRelations",
    "at_loss",
    "attention_masked_loss",
    "attention_matrices_loss",
    "bounded_regression_loss",
    "cc_loss",
    "crd_loss",
    "cwd_loss",
    "dist_loss",
    "dkd_loss",
    "fitnet_loss",
    "foreground_masked_loss",
    "fsp_loss",
    "hcl_loss",
    "hidden_cosine_loss",
    "hidden_states_loss",
    "kd_loss",
    "logit_gram_loss",
    "logit_mse_loss",
    "mgd_loss",
    "mlkd_loss",
    "multi_label_loss",
    "nkd_loss",
    "pkt_loss",
    "regression_loss",
    "reviewkd_loss",
    "rkd_angle_loss",
    "rkd_distance_loss",
    "simkd_loss",
    "sp_loss",
    "ttm_loss",
    "value_relations_loss",
    "vid_loss",
    "wttm_loss",
]
