"""What a notebook cell calls: measuring, comparing, showing, exercises, forecasts, doctor, and the
tutorial runner."""
