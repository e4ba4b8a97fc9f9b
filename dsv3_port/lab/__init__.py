"""What a notebook cell calls: measuring, comparing, showing, exercises, forecasts, the doctor and the tutorial runner."""
