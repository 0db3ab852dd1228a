"""Corruptions of the subject: what is done to the embeddings of its tokens before the model runs.

    h*[0][i] = h[0][i] + eps   or   h*[0][i] = e,   i in the subject
Gaussian noise of three sigma is the published one (Meng et al. 2022, sec. 2.1), sigma being the
standard deviation of the embeddings of the subjects studied. Noise drives the model off the data;
replacing the subject by another one keeps it there (Zhang & Nanda 2024).
"""

from tracer.corrupt.ablation import MeanAblation, ResampleAblation, ZeroAblation
from tracer.corrupt.choice import CORRUPTIONS, corruption_of, measured_corruption
from tracer.corrupt.draws import Corruption, Draws
from tracer.corrupt.embeddings import embedding_sigma, embeddings, subject_embeddings
from tracer.corrupt.noise import GaussianNoise, Noise, StudentNoise, UniformNoise
from tracer.corrupt.replacement import ReplaceSubject

__all__ = [
    "CORRUPTIONS",
    "Corruption",
    "Draws",
    "GaussianNoise",
    "MeanAblation",
    "Noise",
    "ReplaceSubject",
    "ResampleAblation",
    "StudentNoise",
    "UniformNoise",
    "ZeroAblation",
    "corruption_of",
    "embedding_sigma",
    "embeddings",
    "measured_corruption",
    "subject_embeddings",
]
