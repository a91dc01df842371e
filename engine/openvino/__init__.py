"""OpenVINO: conversion by Optimum in a process of its own, the graph that runs, its cache."""
