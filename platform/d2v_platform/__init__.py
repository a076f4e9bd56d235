"""The experiment platform: recipes, Ray Train and Tune, MLflow tracking and registry for data2vec."""
