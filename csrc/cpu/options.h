// Reads the options of an op: "name=value name=value", as pygen/_options.py writes them.
#pragma once
#include <algorithm>
#include <charconv>
#include <initializer_list>
#include <string>
#include <string_view>
#include <unordered_map>

namespace pygen {

// One option's value as the type asked for; `ok` turns false, and stays so, where it is none.
class OptionValue {
 public:
  OptionValue(std::string_view text, bool& ok) : text_(text), ok_(ok) {}

  operator double() const { return number<double>(); }
  operator int64_t() const { return number<int64_t>(); }
  operator bool() const { return number<int64_t>() != 0; }
  operator std::string() const { return std::string(text_); }
  // the place of the value among these names
  int64_t among(std::initializer_list<std::string_view> names) const {
    int64_t i = 0;
    for (const auto name : names) {
      if (name == text_) return i;
      ++i;
    }
    ok_ = false;
    return 0;
  }

 private:
  template <class T>
  T number() const {
    T value{};
    const auto end = text_.data() + text_.size();
    const auto [stop, error] = std::from_chars(text_.data(), end, value);
    if (error != std::errc() || stop != end) ok_ = false;
    return value;
  }
  std::string_view text_;
  bool& ok_;
};

struct TransparentHash : std::hash<std::string_view> {
  using is_transparent = void;  // finds a string_view without making a string
};

// O is default-constructible, has a member `bool ok = true` and `bool set(std::string_view name, OptionValue value)`,
// which returns false for a name it does not know. Parsed once per thread and string.
template <class O>
const O& parse_options(std::string_view text) {
  thread_local std::unordered_map<std::string, O, TransparentHash, std::equal_to<>> known;
  const auto found = known.find(text);
  if (found != known.end()) return found->second;
  if (known.size() > 1024) known.clear();
  O options;
  for (std::string_view rest = text; !rest.empty();) {
    const auto word = rest.substr(0, rest.find(' '));
    rest.remove_prefix(std::min(rest.size(), word.size() + 1));
    const auto equals = word.find('=');
    if (equals == word.npos || !options.set(word.substr(0, equals), {word.substr(equals + 1), options.ok})) {
      options.ok = false;
    }
  }
  return known.emplace(std::string(text), options).first->second;
}

}  // namespace pygen
