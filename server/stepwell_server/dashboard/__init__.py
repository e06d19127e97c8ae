"""The page at `/`: its files, and under which headers a browser gets them.

`page/` is plain HTML, CSS and JavaScript modules, with no build step:

    index.html          what there is before a server was asked anything
    style.css           light and dark
    app.js              begins, chooses a model, repaints
    api.js              calls, and the stream of events, with the token
    feed.js             what is known of one model: its history, then what happens
    series.js           columns of numbers: thinning out, smoothing, rates (no page needed)
    charts.js           curves, by plotly
    workers.js, timeline.js, hyperparameters.js, checkpoints.js, health.js, welcome.js
                        one part of the page each
    elements.js, shown.js
                        elements of a page; numbers, bytes and times for people

plotly.js comes from the installed `plotly` package. Nothing is asked of any other host.
"""

from stepwell_server.dashboard.files import HEADERS, Files, StaticFile, shared_files

__all__ = ["HEADERS", "Files", "StaticFile", "shared_files"]
