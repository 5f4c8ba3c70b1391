from .dataset import decoded_images as decoded_images
from .dataset import extract_features as extract_features
from .job import job_session as job_session
