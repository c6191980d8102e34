"""The same service in Flask 2.3.3, with the routes of the other workloads."""

from flask import Flask, jsonify, request

app = Flask(__name__)


@app.get("/")
def hello():
    return "Hello from Docker!"


@app.get("/health")
def health():
    return "OK"


@app.post("/echo")
def echo():
    return jsonify(request.get_json())


@app.get("/large")
def large():
    return "x" * (1 << 20)
