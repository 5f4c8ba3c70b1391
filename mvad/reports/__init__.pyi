from .page import read_overview as read_overview
from .page import write_pages as write_pages
