"""What other tools print, as values: a line that isn't known is passed over, an impossible number is a MeasureError."""
