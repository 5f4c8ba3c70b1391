from .evaluation import evaluate_nights as evaluate_nights
