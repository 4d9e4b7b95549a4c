"""What `spo report` is made of: artefacts become one compact data set, and the page that shows it one HTML file."""
