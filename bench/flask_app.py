"""The sibling: the same two routes in Flask 2.3.3."""

from flask import Flask

app = Flask(__name__)


@app.get("/")
def hello():
    return "Hello from Docker!"


@app.get("/health")
def health():
    return "OK"
