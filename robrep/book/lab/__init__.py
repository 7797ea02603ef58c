"""The lab: recorded networks described for the browser, and the JavaScript that attacks them in the page."""
