"""The version of mvad."""

VERSION = "0.1.0"
