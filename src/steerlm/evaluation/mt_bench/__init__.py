"""MT-Bench (arXiv 2306.05685): two-turn questions, answers of any OpenAI-compatible server, a language model as judge.

Questions, reference answers and the judge's prompts are read from where they are published; none is part of this
package. Files have FastChat's layouts, so that published answers and judgments load, and FastChat reads ours.
"""
