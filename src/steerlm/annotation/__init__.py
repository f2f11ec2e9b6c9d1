"""Annotation: the attribute model scores every response of a conversation file, resumably."""

from steerlm.annotation.report import AnnotationReport
from steerlm.annotation.run import annotate
from steerlm.annotation.scorer import Scored, Scorer
from steerlm.annotation.settings import AnnotateSettings, ScoreSettings

__all__ = ["AnnotateSettings", "AnnotationReport", "ScoreSettings", "Scored", "Scorer", "annotate"]
