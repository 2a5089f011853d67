plugins {
    id("com.android.application") version "8.7.0"
    id("org.jetbrains.kotlin.android") version "2.0.21"
}

android {
    namespace = "org.clusir"
    compileSdk = 35
    defaultConfig {
        applicationId = "org.clusir.sample"
        minSdk = 26
        ndk { abiFilters += "arm64-v8a" }
        externalNativeBuild {
            cmake {
                // headers/ of the unpacked onnxruntime-android AAR, and nlohmann_json's CMake folder
                arguments += listOf("-DORT_INCLUDE_DIR=${property("ortIncludeDir")}", "-Dnlohmann_json_DIR=${property("jsonDir")}")
            }
        }
    }
    externalNativeBuild { cmake { path = file("src/main/cpp/CMakeLists.txt") } }
    compileOptions { sourceCompatibility = JavaVersion.VERSION_17; targetCompatibility = JavaVersion.VERSION_17 }
    kotlinOptions { jvmTarget = "17" }
}

dependencies {
    implementation("com.microsoft.onnxruntime:onnxruntime-android:1.22.0")
    implementation("com.google.ai.edge.litert:litert:1.0.1") // for LiteRtRunner alone
}
