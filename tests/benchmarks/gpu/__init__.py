"""What a GPU does for mvad: agreement with the CPU, speed, memory, and what limits a job."""
