# The C++ runtime of resnet-deploy, for find_package(resnet-deploy [COMPONENTS OpenVINO TensorRT]).
#
# Targets:
#   resnet-deploy::resnet-deploy   the headers, with nlohmann-json and the backends
#   resnet_deploy_c                the C interface as a shared library; built only where something links with it
#
# Without COMPONENTS, each backend is in where it is found; with them, those that are named and no others. What is in is
# said by resnet-deploy_OpenVINO_FOUND and resnet-deploy_TensorRT_FOUND. The first find_package of a directory decides;
# later ones, also of its subdirectories, may ask for what that has, and are refused what it lacks.
#
# OpenVINO and nlohmann-json are found as CMake packages (OpenVINO_DIR, nlohmann_json_DIR), or as the wheels of PyPI in
# the site-packages of RESNET_DEPLOY_SITE_PACKAGES, of this package, of a .venv beside a checkout of it, or of the active
# virtual environment. TensorRT, or TensorRT-RTX, is found in TensorRT_ROOT, and CUDA by CMake's CUDAToolkit.

cmake_policy(PUSH)
cmake_policy(VERSION 3.24)

set(RESNET_DEPLOY_SITE_PACKAGES "" CACHE PATH "Python's site-packages with openvino and nlohmann_json")
get_filename_component(_resnet_deploy_cpp "${CMAKE_CURRENT_LIST_DIR}/.." ABSOLUTE)
get_filename_component(_resnet_deploy_beside "${_resnet_deploy_cpp}/../.." ABSOLUTE)
file(GLOB _resnet_deploy_sites LIST_DIRECTORIES TRUE
  "${_resnet_deploy_beside}/.venv/lib/python3*/site-packages"
  "$ENV{VIRTUAL_ENV}/lib/python3*/site-packages")
list(PREPEND _resnet_deploy_sites "${_resnet_deploy_beside}")
if(RESNET_DEPLOY_SITE_PACKAGES)
  list(PREPEND _resnet_deploy_sites "${RESNET_DEPLOY_SITE_PACKAGES}")
endif()

set(${CMAKE_FIND_PACKAGE_NAME}_FOUND TRUE)
set(_resnet_deploy_missing "")
find_package(Threads REQUIRED)

# nlohmann-json: a CMake package, or the wheel's headers
set(_resnet_deploy_json "")
find_package(nlohmann_json 3.11 CONFIG QUIET)
if(nlohmann_json_FOUND)
  set(_resnet_deploy_json nlohmann_json::nlohmann_json)
else()
  set(_resnet_deploy_hints ${_resnet_deploy_sites})
  list(TRANSFORM _resnet_deploy_hints APPEND "/nlohmann_json/include")
  find_path(RESNET_DEPLOY_JSON_INCLUDE_DIR nlohmann/json.hpp HINTS ${_resnet_deploy_hints})
  mark_as_advanced(RESNET_DEPLOY_JSON_INCLUDE_DIR)
  if(NOT RESNET_DEPLOY_JSON_INCLUDE_DIR)
    string(APPEND _resnet_deploy_missing " nlohmann-json (pip install nlohmann-json, or set "
      "RESNET_DEPLOY_SITE_PACKAGES to the site-packages that has it, or nlohmann_json_DIR);")
  endif()
endif()

set(_resnet_deploy_places "RESNET_DEPLOY_SITE_PACKAGES to the site-packages that has it, or OpenVINO_DIR")
set(resnet-deploy_OpenVINO_FOUND FALSE)
set(resnet-deploy_TensorRT_FOUND FALSE)

if(TARGET resnet-deploy::resnet-deploy)
  get_target_property(_resnet_deploy_has resnet-deploy::resnet-deploy INTERFACE_COMPILE_DEFINITIONS)
  foreach(_resnet_deploy_one OpenVINO TensorRT)
    string(TOUPPER "RESNET_DEPLOY_WITH_${_resnet_deploy_one}=1" _resnet_deploy_defined)
    if(_resnet_deploy_defined IN_LIST _resnet_deploy_has)
      set(resnet-deploy_${_resnet_deploy_one}_FOUND TRUE)
    elseif(resnet-deploy_FIND_REQUIRED_${_resnet_deploy_one})
      string(APPEND _resnet_deploy_missing
        " ${_resnet_deploy_one}, which an earlier find_package(resnet-deploy) here left out: name it there too;")
    endif()
  endforeach()
else()
  # Those that are asked for
  set(_resnet_deploy_wanted OpenVINO TensorRT)
  if(resnet-deploy_FIND_COMPONENTS)
    set(_resnet_deploy_wanted ${resnet-deploy_FIND_COMPONENTS})
  endif()

  # OpenVINO: a CMake package, of the wheel or of any installation
  if("OpenVINO" IN_LIST _resnet_deploy_wanted)
    set(_resnet_deploy_hints ${_resnet_deploy_sites})
    list(TRANSFORM _resnet_deploy_hints APPEND "/openvino/cmake")
    find_package(OpenVINO CONFIG QUIET COMPONENTS Runtime HINTS ${_resnet_deploy_hints})
    if(OpenVINO_FOUND AND OpenVINO_VERSION VERSION_GREATER_EQUAL 2025.4)
      set(resnet-deploy_OpenVINO_FOUND TRUE)
    elseif(resnet-deploy_FIND_REQUIRED_OpenVINO)
      string(APPEND _resnet_deploy_missing
        " OpenVINO 2025.4 or later (pip install openvino, or set ${_resnet_deploy_places});")
    endif()
  endif()

  # TensorRT or TensorRT-RTX, whose headers have the same names, and the CUDA runtime
  if("TensorRT" IN_LIST _resnet_deploy_wanted)
    find_path(TensorRT_INCLUDE_DIR NvInfer.h HINTS ${TensorRT_ROOT} $ENV{TensorRT_ROOT} PATH_SUFFIXES include)
    set(_resnet_deploy_library nvinfer)
    if(TensorRT_INCLUDE_DIR AND EXISTS "${TensorRT_INCLUDE_DIR}/NvInferVersion.h")
      file(STRINGS "${TensorRT_INCLUDE_DIR}/NvInferVersion.h" _resnet_deploy_rtx REGEX "define +TRT_MAJOR_RTX")
      if(_resnet_deploy_rtx)
        set(_resnet_deploy_library tensorrt_rtx)
      endif()
    endif()
    find_library(TensorRT_LIBRARY ${_resnet_deploy_library}
      HINTS ${TensorRT_ROOT} $ENV{TensorRT_ROOT} PATH_SUFFIXES lib lib64)
    mark_as_advanced(TensorRT_INCLUDE_DIR TensorRT_LIBRARY)
    if(TensorRT_INCLUDE_DIR AND TensorRT_LIBRARY)
      find_package(CUDAToolkit QUIET)
    endif()
    if(TensorRT_INCLUDE_DIR AND TensorRT_LIBRARY AND TARGET CUDA::cudart)
      set(resnet-deploy_TensorRT_FOUND TRUE)
    elseif(resnet-deploy_FIND_REQUIRED_TensorRT)
      string(APPEND _resnet_deploy_missing " TensorRT with its headers (set TensorRT_ROOT) and the CUDA toolkit;")
    endif()
  endif()

  if(NOT resnet-deploy_OpenVINO_FOUND AND NOT resnet-deploy_TensorRT_FOUND AND NOT resnet-deploy_FIND_QUIETLY)
    message(WARNING "resnet-deploy: no backend was found, and without one no engine can be opened. For OpenVINO: "
      "pip install openvino, or set ${_resnet_deploy_places}; for TensorRT: set TensorRT_ROOT")
  endif()
endif()

foreach(_resnet_deploy_one IN LISTS resnet-deploy_FIND_COMPONENTS)
  if(NOT _resnet_deploy_one MATCHES "^(OpenVINO|TensorRT)$" AND resnet-deploy_FIND_REQUIRED_${_resnet_deploy_one})
    string(APPEND _resnet_deploy_missing " ${_resnet_deploy_one}: the components are OpenVINO and TensorRT;")
  endif()
endforeach()

if(_resnet_deploy_missing)
  set(${CMAKE_FIND_PACKAGE_NAME}_FOUND FALSE)
  set(${CMAKE_FIND_PACKAGE_NAME}_NOT_FOUND_MESSAGE "what is missing:${_resnet_deploy_missing}")
else()
  if(NOT TARGET resnet-deploy::resnet-deploy)
    foreach(_resnet_deploy_one OpenVINO TensorRT)
      set(_resnet_deploy_has_${_resnet_deploy_one} 0)
      if(resnet-deploy_${_resnet_deploy_one}_FOUND)
        set(_resnet_deploy_has_${_resnet_deploy_one} 1)
      endif()
    endforeach()
    add_library(resnet-deploy::resnet-deploy INTERFACE IMPORTED)
    target_compile_features(resnet-deploy::resnet-deploy INTERFACE cxx_std_17)
    target_include_directories(resnet-deploy::resnet-deploy INTERFACE "${_resnet_deploy_cpp}/include")
    # Both always, so that all files of a program agree on which backends there are.
    target_compile_definitions(resnet-deploy::resnet-deploy INTERFACE
      RESNET_DEPLOY_WITH_OPENVINO=${_resnet_deploy_has_OpenVINO}
      RESNET_DEPLOY_WITH_TENSORRT=${_resnet_deploy_has_TensorRT})
    target_link_libraries(resnet-deploy::resnet-deploy INTERFACE Threads::Threads ${_resnet_deploy_json})
    if(NOT _resnet_deploy_json)
      target_include_directories(resnet-deploy::resnet-deploy SYSTEM INTERFACE "${RESNET_DEPLOY_JSON_INCLUDE_DIR}")
    endif()
    if(resnet-deploy_OpenVINO_FOUND)
      target_link_libraries(resnet-deploy::resnet-deploy INTERFACE openvino::runtime)
    endif()
    if(resnet-deploy_TensorRT_FOUND)
      target_include_directories(resnet-deploy::resnet-deploy SYSTEM INTERFACE "${TensorRT_INCLUDE_DIR}")
      target_link_libraries(resnet-deploy::resnet-deploy INTERFACE "${TensorRT_LIBRARY}" CUDA::cudart)
    endif()
  endif()
  if(NOT TARGET resnet_deploy_c)
    add_library(resnet_deploy_c SHARED EXCLUDE_FROM_ALL "${_resnet_deploy_cpp}/src/resnet_deploy.cpp")
    set_target_properties(resnet_deploy_c PROPERTIES CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON)
    target_include_directories(resnet_deploy_c PUBLIC "${_resnet_deploy_cpp}/include")
    target_link_libraries(resnet_deploy_c PRIVATE resnet-deploy::resnet-deploy)
  endif()
endif()

cmake_policy(POP)
