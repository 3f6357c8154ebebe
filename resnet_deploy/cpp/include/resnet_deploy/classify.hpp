// Logits to classes: the ranks and the probabilities that Python gives (verify.best_classes, engine.py).
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>
#include <vector>

namespace resnet_deploy {

/// One class that an image may belong to, with the softmax probability the engine gives it.
struct Prediction {
  int index = 0;
  std::string label;  ///< "class 7" where the model has no labels.
  double probability = 0;
};

/// Rank the classes of one image, best first; of equal logits the lower class wins, and what is no number comes last.
///
/// logits: `classes` values.
/// Returns: min(count, classes) classes.
inline std::vector<int> best_classes(const float* logits, int classes, int count = 5) {
  std::vector<int> ranked(static_cast<std::size_t>(classes));
  std::iota(ranked.begin(), ranked.end(), 0);
  const auto is_better = [logits](int a, int b) {
    const bool is_number = !std::isnan(logits[a]), other_is = !std::isnan(logits[b]);
    if (is_number != other_is) return is_number;
    if (is_number && logits[a] != logits[b]) return logits[a] > logits[b];
    return a < b;
  };
  const auto kept = ranked.begin() + std::clamp(count, 0, classes);
  std::partial_sort(ranked.begin(), kept, ranked.end(), is_better);
  ranked.erase(kept, ranked.end());
  return ranked;
}

/// Softmax of one image's logits, in double precision.
inline std::vector<double> softmax(const float* logits, int classes) {
  std::vector<double> values(logits, logits + classes);
  if (values.empty()) return values;
  const double most = *std::max_element(values.begin(), values.end());
  for (double& value : values) value = std::exp(value - most);
  const double sum = std::accumulate(values.begin(), values.end(), 0.0);
  for (double& value : values) value /= sum;
  return values;
}

}  // namespace resnet_deploy
