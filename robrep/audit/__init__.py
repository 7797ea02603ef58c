"""Is this robustness real? Checks that tell a robust model from one whose gradients lead an attack astray.

A model that survives a gradient attack is robust, or its gradients are useless: then another attack breaks it (Athalye
et al. 2018; Carlini et al. 2019; Tramer et al. 2020). :func:`audit` asks a model the questions that such work asks by
hand, and answers in plain words. A model that passes is not proven robust; one that does not pass is not measured yet.

What is exactly true of a sound evaluation is tested exactly (a call repeats itself, an image does not notice its
neighbours, gradients are not zero). The rest compares numbers with limits, which stand with the checks.
"""

from __future__ import annotations

from robrep.audit.report import QUESTIONS, Audit, Finding, Landscape, Verdict
from robrep.audit.run import audit

__all__ = ["QUESTIONS", "Audit", "Finding", "Landscape", "Verdict", "audit"]
