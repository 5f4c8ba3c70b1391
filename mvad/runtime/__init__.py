"""Ray and the machine."""
