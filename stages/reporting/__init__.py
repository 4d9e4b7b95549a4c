"""The parts of `spo report`: artefacts are packed into one compact data set, and its page into one HTML file."""
