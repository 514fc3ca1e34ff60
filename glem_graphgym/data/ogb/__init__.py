"""Open Graph Benchmark datasets with their raw text."""

from glem_graphgym.data.ogb.arxiv import checks_of_ogbn_arxiv, load_ogbn_arxiv
from glem_graphgym.data.ogb.papers100m import checks_of_ogbn_papers100m, load_ogbn_papers100m
from glem_graphgym.data.ogb.products import checks_of_ogbn_products, load_ogbn_products

# dataset.name -> function that loads the graph from the folder of datasets, and one that returns its quick checks.
OGB = {
    "ogbn-arxiv": (load_ogbn_arxiv, checks_of_ogbn_arxiv),
    "ogbn-products": (load_ogbn_products, checks_of_ogbn_products),
    "ogbn-papers100M": (load_ogbn_papers100m, checks_of_ogbn_papers100m),
}
